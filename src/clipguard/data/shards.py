"""Which files of a folder, or of a pattern, belong together as the shards of one data set."""

import re
from pathlib import Path
from typing import Final

from clipguard.errors import ClipguardError

NUMBERED_SHARD: Final = re.compile(
    r"(?P<split>.+)-(?P<number>\d{1,9})-of-(?P<total>\d{1,9})(?P<suffix>\.parquet|\.tar)"
)
TAR_SHARD: Final = re.compile(r"(?P<split>.*?)\d+\.tar")
BRACES: Final = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
MOST_SHARDS: Final = 100_000
KINDS: Final = (".parquet", ".tar")


def _common(name: str) -> tuple[str, ...] | None:
    """Return what the shards of one split have in common; None for a name that is no shard's."""
    if match := NUMBERED_SHARD.fullmatch(name):
        return match.group("split", "total", "suffix")
    match = TAR_SHARD.fullmatch(name)
    return (match["split"], ".tar") if match else None


def _shards_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in KINDS and path.name[0] != ".")


def shard_folder(folder: Path) -> Path | None:
    """Return `folder`, or its only sub-folder, if Parquet or tar files lie there; None for an image folder.

    A clone from the Hugging Face Hub has its shards in such a sub-folder, `data` for most data sets.
    """
    if _shards_in(folder):
        return folder
    inside = [path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
    return inside[0] if len(inside) == 1 and _shards_in(inside[0]) else None


def choose_files(folder: Path) -> list[Path]:
    """Return the Parquet or tar files of `folder` that belong together, by name.

    Raises:
        ClipguardError: several files that are not the shards of one split, or not all of them.
    """
    files = _shards_in(folder)
    shards = {_common(file.name): file for file in reversed(files)}
    if len(files) > 1 and (len(shards) > 1 or None in shards):
        names = ", ".join(path.name for path in files[:5]) + (", ..." if len(files) > 5 else "")
        kind = " or ".join(
            word
            for word, suffix in (("Parquet", ".parquet"), ("tar", ".tar"))
            if suffix in {file.suffix for file in files}
        )
        raise ClipguardError(
            f"{folder} holds {len(files)} {kind} files that may not belong together: choose one of {names}"
            f"{_patterns(folder, shards)}"
        )
    _check_whole(files)
    return files


def _check_whole(files: list[Path]) -> None:
    """Refuse shards that are numbered as 00000-of-00003 if some are missing.

    Raises:
        ClipguardError: which is the first, and how to open a part.
    """
    sets: dict[tuple[str, ...], dict[int, Path]] = {}
    for file in files:
        if match := NUMBERED_SHARD.fullmatch(file.name):
            common = match.group("split", "total", "suffix")
            sets.setdefault(common, {})[int(match["number"])] = file
    for (split, total, suffix), shards in sets.items():
        missing = next((number for number in range(int(total)) if number not in shards), None)
        if missing is None:
            continue
        first = last = min(shards)
        while last + 1 in shards:
            last += 1
        width, end = len(total), f"-of-{total}{suffix}"
        part = f"{first:0{width}d}" if first == last else f"{{{first:0{width}d}..{last:0{width}d}}}"
        raise ClipguardError(
            f"{files[0].parent} lacks {split}-{missing:0{width}d}{end}: get it, or open a part, such as "
            f"'{split}-{part}{end}'"
        )


def _patterns(folder: Path, shards: dict[tuple[str, ...] | None, Path]) -> str:
    """Return the pattern of each split, if all files are shards, as the end of a line."""
    if None in shards:
        return ""
    texts = [f"'{folder / common[0]}*{file.suffix}'" for common, file in shards.items() if common]
    return f"; or all shards of one split by a pattern in quotes: {' or '.join(sorted(texts)[:5])}"


def files_like(path: Path) -> list[Path]:
    """Return the files of a pattern, `data-{000..009}.tar` or `train-*.parquet`; empty for another path.

    Raises:
        ClipguardError: a range that runs backwards or is too long, or a file that is missing; of a pattern
            with a star, a shard that is missing.
    """
    match = BRACES.search(path.name)
    if match is not None:
        return _in_range(path, match)
    if not any(mark in path.name for mark in "*?[") or not path.parent.is_dir():
        return []
    files = sorted(file for file in path.parent.glob(path.name) if file.name[0] != ".")
    _check_whole(files)
    return files


def _in_range(path: Path, match: re.Match[str]) -> list[Path]:
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
