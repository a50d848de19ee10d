"""Parquet: images as struct{bytes, path}, as Hugging Face has them with names in the schema; bytes; paths."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from clipguard.data.columns import Columns
from clipguard.data.folder import inside_file
from clipguard.data.folder_layout import leaves
from clipguard.data.labels import Labels, group_numbers, of_codes
from clipguard.data.listing import Failed, FileState, Item, Listing, file_state, unique_ids
from clipguard.data.metadata import OUT_OF_FOLDER, inside
from clipguard.data.parquet_file import Shard, list_shard, read_cells
from clipguard.data.parquet_sandbox import sandboxed_cells, sandboxed_shard
from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits
from clipguard.safety.sandbox import sandboxes


@dataclass(frozen=True, slots=True)
class ParquetReader:
    """Reads the shards one after the other, by row groups.

    Attributes:
        files: the shards.
        firsts: number of the first row of each shard, and the number of all rows.
        groups: number of the first row of each row group.
        limits: a larger cell becomes `Failed`.
        columns: as they were given.
        paths: of the images, relative to the folder of their shard, where they are files instead of cells.
    """

    files: tuple[Path, ...]
    firsts: tuple[int, ...]
    groups: Int64[np.ndarray, "g"]
    limits: Limits
    columns: Columns
    paths: tuple[str | None, ...] | None = None

    def read(self, rows: Int64[np.ndarray, "m"]) -> Iterator[Item]:
        """Return the images' bytes; none where they are null."""
        cuts = np.searchsorted(rows, self.firsts)
        read = sandboxed_cells if sandboxes(self.limits) else read_cells
        for number, path in enumerate(self.files):
            rows_here = rows[cuts[number] : cuts[number + 1]]
            if self.paths is not None:
                yield from (self._file(path.parent, self.paths[row]) for row in rows_here)
            elif len(rows_here):
                rows_here = rows_here - self.firsts[number]
                # Closed at once where the caller wants no more, so that its worker does not linger.
                with closing(read(path, str(path), rows_here, self.limits, columns=self.columns)) as items:
                    yield from items

    def _file(self, folder: Path, path: str | None) -> Item:
        """Return the contents of a file that the table names: it may name none outside its own folder."""
        if path is None:
            return Failed("neither bytes nor a path")
        return inside_file(folder, path, self.limits) if inside(path, self.limits) else Failed(OUT_OF_FOLDER)

    def file_states(self, rows: Int64[np.ndarray, "m"]) -> Iterator[FileState]:
        """Return size and date of each shard that holds rows, and of the files that these rows name."""
        cuts = np.searchsorted(rows, self.firsts)
        for number, file in enumerate(self.files):
            rows_here = rows[cuts[number] : cuts[number + 1]]
            if len(rows_here):
                yield file_state(file, file.name)
            for name in [] if self.paths is None else [self.paths[row] for row in rows_here]:
                if name is not None and inside(name, self.limits):
                    yield file_state(file.parent / name, name)

    def starts(self) -> Int64[np.ndarray, "g"]:
        """Return the first row of each row group: one is read from its beginning."""
        return self.groups


def _ids(files: list[Path], shards: list[Shard]) -> tuple[str, ...]:
    """Return the images' own paths when each has one and no two are equal, otherwise `file.parquet:row`."""
    paths = [path for shard in shards for path in shard.paths or ()]
    if all(paths) and len(set(paths)) == len(paths) == sum(len(shard.labels) for shard in shards):
        return unique_ids(paths)
    return unique_ids(
        [
            f"{file.name}:{row}"
            for file, shard in zip(files, shards, strict=True)
            for row in range(len(shard.labels))
        ]
    )


def _check_paths(path: Path, shard: Shard, limits: Limits) -> None:
    """Refuse a table whose images are files, none of which lies in its folder.

    Raises:
        ClipguardError: with the way out.
    """
    if not shard.outside or not len(shard.labels):
        return
    folder = path.parent
    files = (folder / name for name in shard.paths or () if inside(name, limits))
    if not any(file.is_file() and not leaves(file, folder.resolve()) for file in files):
        first = next(iter(shard.paths or ()), None)
        raise ClipguardError(
            f"the images of {path} are paths, such as {first!r}, and no such file lies in {path.parent}: "
            "put the files there, write their bytes into the table, or open the `datasets` object in Python"
        )


def _labels(shards: list[Shard], location: Path) -> Labels:
    """Return the labels of all shards, by one rule for all.

    Shards without rows, as a clean copy may have, hold neither.

    Raises:
        ClipguardError: numbers in one shard and texts in another.
    """
    shards = [shard for shard in shards if len(shard.labels)] or shards
    if all(shard.texts is None for shard in shards):
        return Labels(np.concatenate([shard.labels for shard in shards]))
    if any(shard.texts is None for shard in shards):
        raise ClipguardError(
            f"labels of {location} are numbers in some files and texts in others: open them apart"
        )
    distinct = sorted({text for shard in shards for text in shard.texts or ()})
    place = {text: number for number, text in enumerate(distinct)}
    codes = [
        np.array([place[text] for text in shard.texts or ()], np.int64)[shard.labels] for shard in shards
    ]
    return of_codes(distinct, np.concatenate(codes))


def _shards(files: list[Path], limits: Limits, columns: Columns) -> list[Shard]:
    list_one = sandboxed_shard if sandboxes(limits) else list_shard
    shards: list[Shard] = []
    rows = 0
    for path in files:
        shard = list_one(path, str(path), limits, columns=columns)
        _check_paths(path, shard, limits)
        shards.append(shard)
        rows += len(shard.labels)
        if rows > limits.members:
            raise ClipguardError(f"{path} goes above the limit of {limits.members} rows: open a part of it")
        if shard.names != shards[0].names:
            raise ClipguardError(f"{path} and {files[0]} name their classes differently: open them apart")
    filled = [(shard, path) for shard, path in zip(shards, files, strict=True) if len(shard.labels)]
    for shard, path in filled:
        if shard.outside != filled[0][0].outside:
            raise ClipguardError(f"{path} holds images otherwise than {filled[0][1]}: open them apart")
    return shards


def list_parquet(files: list[Path], location: Path, limits: Limits, columns: Columns) -> Listing:
    """Return the rows of all `files` in order; only labels and paths are held in memory.

    Raises:
        ClipguardError: not Parquet, other columns, null labels, no rows, or shards with other class names.
    """
    shards = _shards(files, limits, columns)
    labels = _labels(shards, location)
    if not len(labels.numbers):
        raise ClipguardError(f"no images found in {location}: its table has no rows")
    firsts = np.cumsum([0, *(len(shard.labels) for shard in shards)])
    starts = [first + np.array(shard.groups) for first, shard in zip(firsts, shards, strict=False)]
    paths = [path for shard in shards for path in shard.paths or ()]
    groups = [group for shard in shards for group in shard.groups_of_rows or ()]
    return Listing(
        kind="parquet",
        location=str(location),
        labels=labels.numbers,
        ids=_ids(files, shards),
        names=labels.names or shards[0].names,
        reader=ParquetReader(
            tuple(files),
            tuple(firsts.tolist()),
            np.concatenate(starts),
            limits,
            columns,
            tuple(paths) if any(shard.outside for shard in shards if len(shard.labels)) else None,
        ),
        groups=group_numbers(groups, str(location)) if columns.group is not None else None,
    )
