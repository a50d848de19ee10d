"""Image folders: one sub-folder a class, or a table `metadata.csv` or `metadata.jsonl` with the labels."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from clipguard.data.columns import Columns, no_columns
from clipguard.data.folder_layout import (
    LeftOut,
    below,
    class_folders,
    is_image,
    leaves,
    reason_of_name,
    skip,
    without_images,
)
from clipguard.data.listing import Failed, FileState, Item, Listing, fault, file_state, printable, unique_ids
from clipguard.data.metadata import Metadata, read_metadata
from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits, read_bounded

OUTSIDE = "a link that leads out of the folder: allow it with --limits.links (in Python: Limits)"


@dataclass(frozen=True, slots=True)
class FolderReader:
    """Reads files; what has gone, may not be read or is no file inside the folder becomes `Failed`.

    `table` is the file in the folder that names images, if any does, and `column` that of their paths.
    """

    root: Path
    paths: tuple[str, ...]
    limits: Limits
    table: str | None = None
    column: str | None = None

    def read(self, rows: Int64[np.ndarray, "m"]) -> Iterator[Item]:
        """Return the files' bytes."""
        return (inside_file(self.root, self.paths[row], self.limits) for row in rows)

    def file_states(self, rows: Int64[np.ndarray, "m"]) -> Iterator[FileState]:
        """Return size and date of each file, and of the table."""
        names = [] if self.table is None else [self.table]
        for name in (*names, *(self.paths[row] for row in rows)):
            yield file_state(self.root / name, name)

    def starts(self) -> None:
        """Return None: each row is a file."""


def inside_file(root: Path, name: str, limits: Limits) -> bytes | Failed:
    """Return the bytes of a file in the folder `root`; links lead out of it only where the limits say so."""
    path = root / name
    try:
        if not limits.links and leaves(path, Path(os.path.realpath(root))):
            return Failed(OUTSIDE)
        return read_bounded(path, limits.file_bytes)
    except (OSError, ValueError) as error:  # The latter for a path with a NUL in it.
        return Failed(fault(error))


def list_folder(root: Path, limits: Limits, columns: Columns) -> Listing:
    """Return the images of a folder: by the labels of its table if it has one, else by its class folders.

    Raises:
        ClipguardError: no images, splits instead of classes, a damaged table, or a folder that cannot be
            listed.
    """
    try:
        table = read_metadata(root, limits, columns)
        if table is not None and table.labels is not None:
            return _by_table(root, table, limits)
        if table is None or table.groups is None:
            no_columns(columns, f"{root}, a folder without a table of labels,")
        return _by_folders(root, table, limits)
    except OSError as error:
        raise ClipguardError(f"folder {error.filename or root} cannot be listed: {fault(error)}") from error


def _by_folders(root: Path, table: Metadata | None, limits: Limits) -> Listing:
    """Return class i as the i-th sub-folder by name or number, its images sorted by path."""
    paths: list[str] = []
    labels: list[int] = []
    skipped = LeftOut()
    folders = class_folders(root, limits, skipped)
    for label, folder in enumerate(folders):
        images = _images(root, folder, len(paths), limits.members, skipped)
        paths += images
        labels += [label] * len(images)
    if not paths:
        left = "".join(f", {count} {reason}" for reason, count in skipped.most_common(3))
        raise ClipguardError(
            f"no images found in {root}{left}: expected {root}/CLASS/IMAGE.png, or metadata.csv, or *.parquet"
        )
    keys = tuple(printable(name) for name in folders)
    return Listing(
        kind="folder",
        location=str(root),
        labels=np.array(labels, np.int64),
        ids=unique_ids(paths),
        keys=keys,
        names=tuple(name.replace("_", " ") for name in keys),
        reader=FolderReader(root, tuple(paths), limits, *((table.name, table.column) if table else ())),
        skipped=dict(skipped),
        notes=tuple(_notes(root, folders, paths)),
        groups=None if table is None else table.groups_of(paths),
    )


def _images(root: Path, name: str, before: int, most: int, skipped: LeftOut) -> list[str]:
    """Return the images of the class folder `name`, relative to `root`, in order."""
    images: list[str] = []
    start = len(os.fspath(root / name))
    for count, entry in enumerate(below(root / name, skipped), 1):
        if before + count > most:
            raise ClipguardError(f"{root} holds more files than the limit of {most}: open a part of it")
        if is_image(entry.name):
            images.append(name + entry.path[start:].replace(os.sep, "/"))
        else:
            skip(skipped, reason_of_name(entry.name))
    return sorted(images)


def _notes(root: Path, folders: Sequence[str], paths: Sequence[str]) -> Iterator[str]:
    if list(folders) != sorted(folders):
        yield (
            f"class folders of {root} are ordered by their numbers ({', '.join(folders[:3])}, ...); "
            "torchvision's ImageFolder orders them as text, and so may a given model: "
            f"{', '.join(sorted(folders)[:3])}, ..."
        )
    if deeper := sum(path.count("/") > 1 for path in paths):
        yield f"{deeper} images lie in sub-folders of class folders of {root} and belong to these classes"


def _by_table(root: Path, table: Metadata, limits: Limits) -> Listing:
    """Return the images that the table names, in its order; others are counted."""
    assert table.labels is not None
    skipped = LeftOut()
    listed = {table.name, *table.paths}
    for entry in below(root, skipped):
        name = os.path.relpath(entry.path, root).replace(os.sep, "/")
        if name not in listed:
            skip(skipped, f"not in {table.name}" if is_image(name) else reason_of_name(name))
    if not table.paths:
        raise ClipguardError(f"no images found in {root}: {table.name} names none")
    names = table.labels.names
    notes = [f"labels are those of {table.name}, not the names of folders"]
    if names is not None and (other := _elsewhere(table, names)):
        notes.append(f"{other} of {len(table.paths)} images lie in a folder called as another class")
    return Listing(
        kind="folder",
        location=str(root),
        labels=table.labels.numbers,
        ids=unique_ids(table.paths),
        keys=names,
        names=None if names is None else tuple(name.replace("_", " ") for name in names),
        reader=FolderReader(root, table.paths, limits, table.name, table.column),
        refused=table.refused,
        skipped=without_images(skipped),
        notes=tuple(notes),
        groups=table.groups,
    )


def _elsewhere(table: Metadata, names: Sequence[str]) -> int:
    """Return how many images lie in a folder that is called as another class."""
    assert table.labels is not None
    pairs = zip(table.paths, table.labels.numbers, strict=True)
    folders = ((path.rpartition("/")[0].rpartition("/")[2], names[label]) for path, label in pairs)
    return sum(folder in names and folder != name for folder, name in folders)
