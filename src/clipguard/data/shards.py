"""Which files of a folder, or of a pattern, belong together as the shards of one data set."""

import re
from pathlib import Path
from typing import Final

from clipguard.errors import ClipguardError

PARQUET_SHARD: Final = re.compile(r"(?P<split>.+)-\d+-of-(?P<total>\d+)\.parquet")
TAR_SHARD: Final = re.compile(r"(?P<split>.*?)\d+\.tar")
BRACES: Final = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
MOST_SHARDS: Final = 100_000


def _common(name: str) -> tuple[str, ...] | None:
    """Return what the shards of one split have in common; None for a name that is no shard's."""
    if match := PARQUET_SHARD.fullmatch(name):
        return match.group("split", "total")
    match = TAR_SHARD.fullmatch(name)
    return (match["split"], ".tar") if match else None


def choose_files(folder: Path) -> list[Path]:
    """Return the Parquet or tar files of `folder` that belong together, by name; empty when it has none.

    Raises:
        ClipguardError: several files that are not the shards of one split.
    """
    kinds = (".parquet", ".tar")
    files = sorted(path for path in folder.iterdir() if path.suffix in kinds and path.name[0] != ".")
    shards = {_common(file.name) for file in files}
    if len(files) > 1 and (len(shards) > 1 or None in shards):
        names = ", ".join(path.name for path in files[:5]) + (", ..." if len(files) > 5 else "")
        kind = "Parquet or tar" if {file.suffix for file in files} == set(kinds) else "Parquet"
        kind = "tar" if {file.suffix for file in files} == {".tar"} else kind
        raise ClipguardError(
            f"{folder} holds {len(files)} {kind} files that may not belong together: choose one of {names}"
        )
    return files


def braced(path: Path) -> list[Path]:
    """Return the files of a pattern such as `data-{000..009}.tar`; empty when `path` is no pattern.

    Raises:
        ClipguardError: a range that runs backwards or is too long, or a file that is missing.
    """
    match = BRACES.search(path.name)
    if match is None:
        return []
    first, last = int(match[1]), int(match[2])
    if not first <= last < first + MOST_SHARDS:
        raise ClipguardError(f"the range {match[0]} of {path} is no list of shards: give FIRST..LAST")
    names = [
        f"{path.name[: match.start()]}{number:0{len(match[1])}d}{path.name[match.end() :]}"
        for number in range(first, last + 1)
    ]
    files = [path.with_name(name) for name in names]
    for file in files:
        if not file.exists():
            raise ClipguardError(f"{file} of the pattern {path.name} does not exist: correct the range")
    return files
