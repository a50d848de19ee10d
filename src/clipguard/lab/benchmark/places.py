"""Where things are kept between runs, unless an option says otherwise."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder of victims, fitted attacks and embeddings (`CLIPGUARD_CACHE`)."""
    return Path(os.environ.get("CLIPGUARD_CACHE", "~/.cache/clipguard/bench")).expanduser()
