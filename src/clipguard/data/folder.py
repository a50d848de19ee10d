"""Image folders: one sub-folder a class."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from clipguard.data.listing import Failed, FileState, Item, Listing, fault, file_state, printable, unique_ids
from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits, read_bounded

# Formats that run an interpreter (EPS, PDF, WMF) stay out: the files are untrusted.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"}
)
SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})


@dataclass(frozen=True, slots=True)
class FolderReader:
    """Reads files; what has gone, may not be read or is no file inside the folder becomes `Failed`."""

    root: Path
    paths: tuple[str, ...]
    limits: Limits

    def read(self, rows: Int64[np.ndarray, "m"]) -> Iterator[Item]:
        """Return the files' bytes."""
        inside = Path(os.path.realpath(self.root))
        for row in rows:
            path = self.root / self.paths[row]
            try:
                if not self.limits.links and leaves(path, inside):
                    yield Failed("a link that leads out of the folder")
                else:
                    yield read_bounded(path, self.limits.file_bytes)
            except OSError as error:
                yield Failed(fault(error))

    def file_states(self, rows: Int64[np.ndarray, "m"]) -> Iterator[FileState]:
        """Return size and date of each file."""
        return (file_state(self.root / self.paths[row], self.paths[row]) for row in rows)

    def starts(self) -> None:
        """Return None: each row is a file."""


def leaves(path: Path, inside: Path) -> bool:
    """Tell whether `path` is a link that leads out of the resolved folder `inside`."""
    return path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Return everything below `folder` that is no folder, apart from what is hidden; links are not entered.

    By a list of folders yet to read: `os.walk` would recurse, and thousands of nested folders stop that.
    """
    waiting = [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    yield entry


def _class_folders(root: Path, limits: Limits) -> list[str]:
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if names and {name.lower() for name in names} <= SPLIT_NAMES:
        raise ClipguardError(
            f"{root} holds splits ({', '.join(names)}), not classes: open one, such as {root / names[0]}"
        )
    inside = Path(os.path.realpath(root))
    for name in names:
        if not limits.links and leaves(root / name, inside):
            raise ClipguardError(
                f"class folder {root / name} is a link that leads out of {root}: copy it, or allow links"
            )
    return names


def _images(root: Path, name: str, before: int, most: int) -> list[str]:
    """Return the images of the class folder `name`, relative to `root`, in order."""
    images: list[str] = []
    start = len(os.fspath(root / name))
    for count, entry in enumerate(_entries(root / name), 1):
        if before + count > most:
            raise ClipguardError(f"{root} holds more files than the limit of {most}: open a part of it")
        if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
            images.append(name + entry.path[start:].replace(os.sep, "/"))
    return sorted(images)


def list_folder(root: Path, limits: Limits) -> Listing:
    """Return the images below `root`: class i is the i-th sub-folder by name, images sorted by path.

    Raises:
        ClipguardError: no images, splits instead of classes, or a folder that cannot be listed.
    """
    paths: list[str] = []
    labels: list[int] = []
    try:
        folders = _class_folders(root, limits)
        for label, folder in enumerate(folders):
            images = _images(root, folder, len(paths), limits.members)
            paths += images
            labels += [label] * len(images)
    except OSError as error:
        raise ClipguardError(f"folder {error.filename or root} cannot be listed: {fault(error)}") from error
    if not paths:
        raise ClipguardError(f"no images found in {root}: expected {root}/CLASS/IMAGE.png or *.parquet")
    keys = tuple(printable(name) for name in folders)
    return Listing(
        kind="folder",
        location=str(root),
        labels=np.array(labels, np.int64),
        ids=unique_ids(paths),
        keys=keys,
        names=tuple(name.replace("_", " ") for name in keys),
        reader=FolderReader(root, tuple(paths), limits),
    )
