"""Where things are kept between runs unless a command is told otherwise."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder of victims, helper nets and embeddings (`CLIPGUARD_CACHE`)."""
    return Path(os.environ.get("CLIPGUARD_CACHE", "~/.cache/clipguard/bench")).expanduser()
