"""Image folders: one sub-folder a class."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from clipguard.errors import ClipguardError
from clipguard.sources.listing import Failed, Item, Listing, printable, unique_ids

# Formats that run an interpreter (EPS, PDF, WMF) stay out: the files are untrusted.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"}
)
SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})


@dataclass(frozen=True, slots=True)
class FolderReader:
    """Reads files; a file that has gone or may not be read becomes `Failed`."""

    root: Path
    paths: tuple[str, ...]

    def read(self, rows: Int64[np.ndarray, "m"]) -> Iterator[Item]:
        """Return the files' bytes."""
        for row in rows:
            try:
                yield (self.root / self.paths[row]).read_bytes()
            except OSError as error:
                yield Failed(error.strerror or type(error).__name__)


def _files(folder: Path) -> list[Path]:
    """Return all regular files below `folder`, apart from hidden ones.

    Pipes and devices are left out, because reading one may never end.
    """

    def refuse(error: OSError) -> None:
        raise ClipguardError(f"folder {error.filename} cannot be listed: {error.strerror}") from error

    found = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(parent, name) for name in names if not name.startswith(".")]
        found += [path for path in paths if path.is_file()]
    return found


def _class_folders(root: Path) -> list[str]:
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if names and {name.lower() for name in names} <= SPLIT_NAMES:
        raise ClipguardError(
            f"{root} holds splits ({', '.join(names)}), not classes: open one, such as {root / names[0]}"
        )
    return names


def list_folder(root: Path) -> Listing:
    """Return the images below `root`: class i is the i-th sub-folder by name, images sorted by path.

    Raises:
        ClipguardError: no images, splits instead of classes, or a folder that cannot be listed.
    """
    try:
        folders = _class_folders(root)
        loose = sum(path.is_file() and not path.name.startswith(".") for path in root.iterdir())
    except OSError as error:
        raise ClipguardError(f"folder {root} cannot be listed: {error.strerror}") from error
    paths: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        files = _files(root / folder)
        images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
        loose += len(files) - len(images)
        paths += sorted(path.relative_to(root).as_posix() for path in images)
        labels += [label] * len(images)
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
        reader=FolderReader(root, tuple(paths)),
        ignored=loose,
    )
