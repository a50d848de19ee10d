"""Where things are kept between runs, unless an option says otherwise."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from clipguard.types import Progress


def cache_folder() -> Path:
    """Return the folder of victims, fitted attacks and embeddings (`CLIPGUARD_CACHE`)."""
    return Path(os.environ.get("CLIPGUARD_CACHE", "~/.cache/clipguard/bench")).expanduser()


def _quiet(step: str, done: int, total: int) -> None:
    """Drop progress that nobody reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkPaths:
    """Where a benchmark works.

    Attributes:
        run: the benchmark's own folder.
        cache: victims, fitted attacks and embeddings, shared by all benchmarks.
        data: folder of the data sets that are known by name.
        beside: folder of the TOML file, from which relative paths start.
        download: fetch data sets that are missing.
        progress: called as work goes on.
    """

    run: Path
    cache: Path
    data: Path
    beside: Path
    download: bool = False
    progress: Progress = field(default=_quiet, compare=False)
