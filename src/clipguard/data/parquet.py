"""Parquet in the Hugging Face layout: images as struct{bytes, path}, integer labels, names in its schema."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from clipguard.data.listing import FileState, Item, Listing, file_state, unique_ids
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
    """

    files: tuple[Path, ...]
    firsts: tuple[int, ...]
    groups: Int64[np.ndarray, "g"]
    limits: Limits

    def read(self, rows: Int64[np.ndarray, "m"]) -> Iterator[Item]:
        """Return the images' bytes; none where they are null."""
        cuts = np.searchsorted(rows, self.firsts)
        read = sandboxed_cells if sandboxes(self.limits) else read_cells
        for number, path in enumerate(self.files):
            rows_here = rows[cuts[number] : cuts[number + 1]] - self.firsts[number]
            if len(rows_here):
                # Closed at once where the caller wants no more, so that its worker does not linger.
                with closing(read(path, str(path), rows_here, self.limits)) as items:
                    yield from items

    def file_states(self, rows: Int64[np.ndarray, "m"]) -> Iterator[FileState]:
        """Return size and date of each shard that holds rows."""
        cuts = np.searchsorted(rows, self.firsts)
        return (file_state(file, file.name) for file, n in zip(self.files, np.diff(cuts), strict=True) if n)

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


def list_parquet(files: list[Path], location: Path, limits: Limits) -> Listing:
    """Return the rows of all `files` in order; only labels and paths are held in memory.

    Raises:
        ClipguardError: not Parquet, other columns, null labels, no rows, or shards with other class names.
    """
    list_one = sandboxed_shard if sandboxes(limits) else list_shard
    shards: list[Shard] = []
    rows = 0
    for path in files:
        shard = list_one(path, str(path), limits)
        shards.append(shard)
        rows += len(shard.labels)
        if rows > limits.members:
            raise ClipguardError(f"{path} goes above the limit of {limits.members} rows: open a part of it")
        if shard.names != shards[0].names:
            raise ClipguardError(f"{path} and {files[0]} name their classes differently: open them apart")
    labels = np.concatenate([shard.labels for shard in shards])
    if not len(labels):
        raise ClipguardError(f"no images found in {location}: its table has no rows")
    names = shards[0].names
    firsts = np.cumsum([0, *(len(shard.labels) for shard in shards)])
    groups = [first + np.array(shard.groups) for first, shard in zip(firsts, shards, strict=False)]
    return Listing(
        kind="parquet",
        location=str(location),
        labels=labels,
        ids=_ids(files, shards),
        names=names,
        reader=ParquetReader(tuple(files), tuple(firsts.tolist()), np.concatenate(groups), limits),
    )
