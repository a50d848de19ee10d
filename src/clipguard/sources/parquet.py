"""Parquet in the Hugging Face layout: `image` = struct{bytes, path}, `label` integer, names in its schema."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from clipguard.errors import ClipguardError
from clipguard.limits import MIB, Limits, parse_json
from clipguard.sources.listing import Failed, Item, Listing, as_labels, first_line, unique_ids

if TYPE_CHECKING:
    import pyarrow.parquet as pq

# Few enough that a batch of large photographs stays far below Arrow's 2 GiB for one array of bytes.
BATCH_ROWS = 128
BATCH_BYTES = 256 * MIB
# Arrow's own defaults for the text and the entries of a footer; said here, so that they stay.
FOOTER_BYTES = 100_000_000
FOOTER_ENTRIES = 1_000_000


@contextmanager
def _opened(path: Path) -> "Iterator[pq.ParquetFile]":
    """Open one file; what Arrow raises inside the block becomes one line."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Pages are fetched when they are needed: many writers put a whole file into one row group.
        with pq.ParquetFile(
            path,
            buffer_size=1 << 20,
            pre_buffer=False,
            thrift_string_size_limit=FOOTER_BYTES,
            thrift_container_size_limit=FOOTER_ENTRIES,
        ) as opened:
            yield opened
    # Beside its own, Arrow raises these for a text that is no UTF-8, a column named twice, a huge page.
    except (pa.ArrowException, OSError, ValueError, KeyError, IndexError, MemoryError) as error:
        raise ClipguardError(f"{path} cannot be read as Parquet: {first_line(error)}") from error


@dataclass(frozen=True, slots=True)
class ParquetReader:
    """Reads the shards one after the other, by row groups.

    Attributes:
        files: the shards.
        starts: number of the first row of each shard, and the number of all rows.
        limits: a larger cell becomes `Failed`.
    """

    files: tuple[Path, ...]
    starts: tuple[int, ...]
    limits: Limits

    def read(self, rows: Int64[np.ndarray, "m"]) -> Iterator[Item]:
        """Return the images' bytes; none where they are null: a `path` from such data is never followed."""
        cuts = np.searchsorted(rows, self.starts)
        for number, path in enumerate(self.files):
            wanted = rows[cuts[number] : cuts[number + 1]] - self.starts[number]
            if len(wanted):
                yield from self._shard(path, wanted)

    def _shard(self, path: Path, wanted: Int64[np.ndarray, "m"]) -> Iterator[Item]:
        count, most = 0, self.limits.file_bytes
        with _opened(path) as opened:
            for value in _read_shard(opened, wanted):
                count += 1
                if value is not None and len(value) > most:
                    yield Failed(f"{len(value)} bytes, more than the limit of {most}")
                else:
                    yield value or b""
        if count < len(wanted):
            raise ClipguardError(f"{path} holds fewer rows than it claims: get it again")


def _read_shard(opened: "pq.ParquetFile", wanted: Int64[np.ndarray, "m"]) -> Iterator[bytes | None]:
    start = 0
    for group in range(opened.num_row_groups):
        stop = start + opened.metadata.row_group(group).num_rows
        inside = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, stop)] - start
        if len(inside):
            yield from _read_group(opened, group, inside)
        start = stop


def _batch_rows(group: "pq.RowGroupMetaData") -> int:
    """Return how many rows of a row group are read at once: few where its cells are huge."""
    size, rows = int(group.total_byte_size), int(group.num_rows)
    mean = max(1, size // max(1, rows))
    return max(1, min(BATCH_ROWS, BATCH_BYTES // mean))


def _read_group(
    opened: "pq.ParquetFile", group: int, wanted: Int64[np.ndarray, "m"]
) -> Iterator[bytes | None]:
    import pyarrow.compute as pc

    start = 0
    rows = _batch_rows(opened.metadata.row_group(group))
    for batch in opened.iter_batches(rows, row_groups=[group], columns=["image.bytes"]):
        stop = start + batch.num_rows
        low, high = np.searchsorted(wanted, (start, stop))
        column = pc.struct_field(batch.column("image"), "bytes")
        yield from column.take(wanted[low:high] - start).to_pylist()
        if high == len(wanted):
            return
        start = stop


def _check_columns(opened: "pq.ParquetFile", path: Path) -> bool:
    """Return whether the images have a `path` beside their bytes; raise when the columns are not ours."""
    import pyarrow as pa

    schema = opened.schema_arrow
    missing = [name for name in ("image", "label") if name not in schema.names]
    if missing:
        raise ClipguardError(
            f"{path} lacks the column {missing[0]!r}: it has {', '.join(schema.names)[:200]}"
        )
    image, label = schema.field("image").type, schema.field("label").type
    fields = {field.name: field.type for field in image} if pa.types.is_struct(image) else {}
    content = fields.get("bytes")
    if content is None or not (pa.types.is_binary(content) or pa.types.is_large_binary(content)):
        raise ClipguardError(
            f"column 'image' of {path} must be struct<bytes: binary, path: string>, not {image}"
        )
    if not pa.types.is_integer(label):
        raise ClipguardError(f"column 'label' of {path} must hold integers, not {label}")
    path_type = fields.get("path", pa.null())
    return bool(pa.types.is_string(path_type) or pa.types.is_large_string(path_type))


def _metadata_names(opened: "pq.ParquetFile", limits: Limits) -> tuple[str, ...] | None:
    """Return the class names in the schema's metadata; None when there are none to be made out."""
    text = (opened.schema_arrow.metadata or {}).get(b"huggingface")
    try:
        names = parse_json(text, limits)["info"]["features"]["label"]["names"] if text else None
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


@dataclass(frozen=True, slots=True)
class _Shard:
    labels: Int64[np.ndarray, "n"]
    paths: list[Any] | None
    names: tuple[str, ...] | None


def _list_shard(path: Path, limits: Limits) -> _Shard:
    import pyarrow.compute as pc

    with _opened(path) as opened:
        has_path = _check_columns(opened, path)
        claimed = opened.metadata.num_rows
        if claimed > limits.members:
            raise ClipguardError(f"{path} claims {claimed} rows, more than the limit of {limits.members}")
        table = opened.read(columns=["label", "image.path"] if has_path else ["label"])
        names = _metadata_names(opened, limits)
        column = table.column("label")
        given = np.array(column.to_pylist(), object) if column.null_count else column.to_numpy()
        labels = as_labels(given, str(path))
        paths = pc.struct_field(table.column("image"), "path").to_pylist() if has_path else None
    if len(labels) != claimed:
        raise ClipguardError(f"{path} claims {claimed} rows but holds {len(labels)}: get it again")
    if paths is not None and any(len(name or "") > limits.name_length for name in paths):
        paths = None
    return _Shard(labels, paths, names)


def _ids(files: list[Path], shards: list[_Shard]) -> tuple[str, ...]:
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
    shards = [_list_shard(path, limits) for path in files]
    for path, shard in zip(files, shards, strict=True):
        if shard.names != shards[0].names:
            raise ClipguardError(f"{path} and {files[0]} name their classes differently: open them apart")
    labels = np.concatenate([shard.labels for shard in shards])
    if not len(labels):
        raise ClipguardError(f"no images found in {location}: its table has no rows")
    names = shards[0].names
    starts = np.cumsum([0, *(len(shard.labels) for shard in shards)])
    return Listing(
        kind="parquet",
        location=str(location),
        labels=labels,
        ids=_ids(files, shards),
        keys=names,
        names=names,
        reader=ParquetReader(tuple(files), tuple(int(start) for start in starts), limits),
    )
