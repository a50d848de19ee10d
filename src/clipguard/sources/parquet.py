"""Parquet in the Hugging Face layout: `image` = struct{bytes, path}, `label` integer, names in its schema."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from clipguard.errors import ClipguardError
from clipguard.sources.listing import Item, Listing, as_labels, first_line, unique_ids

if TYPE_CHECKING:
    import pyarrow.parquet as pq

# Few enough that a batch of large photographs stays far below Arrow's 2 GiB for one array of bytes.
BATCH_ROWS = 128
SHARD = re.compile(r"(?P<split>.+)-\d+-of-(?P<total>\d+)\.parquet")


@contextmanager
def _opened(path: Path) -> "Iterator[pq.ParquetFile]":
    """Open one file; what Arrow raises inside the block becomes one line."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Pages are fetched when they are needed: many writers put a whole file into one row group.
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as opened:
            yield opened
    except (pa.ArrowException, OSError) as error:
        raise ClipguardError(f"{path} cannot be read as Parquet: {first_line(error)}") from error


@dataclass(frozen=True, slots=True)
class ParquetReader:
    """Reads the shards one after the other, by row groups.

    Attributes:
        files: the shards.
        starts: number of the first row of each shard, and the number of all rows.
    """

    files: tuple[Path, ...]
    starts: tuple[int, ...]

    def read(self, rows: Int64[np.ndarray, "m"]) -> Iterator[Item]:
        """Return the images' bytes; none where they are null: a `path` from such data is never followed."""
        cuts = np.searchsorted(rows, self.starts)
        for number, path in enumerate(self.files):
            wanted = rows[cuts[number] : cuts[number + 1]] - self.starts[number]
            if len(wanted):
                with _opened(path) as opened:
                    yield from _read_shard(opened, wanted)


def _read_shard(opened: "pq.ParquetFile", wanted: Int64[np.ndarray, "m"]) -> Iterator[bytes]:
    start = 0
    for group in range(opened.num_row_groups):
        stop = start + opened.metadata.row_group(group).num_rows
        inside = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, stop)] - start
        if len(inside):
            yield from _read_group(opened, group, inside)
        start = stop


def _read_group(opened: "pq.ParquetFile", group: int, wanted: Int64[np.ndarray, "m"]) -> Iterator[bytes]:
    import pyarrow.compute as pc

    start = 0
    for batch in opened.iter_batches(BATCH_ROWS, row_groups=[group], columns=["image.bytes"]):
        stop = start + batch.num_rows
        low, high = np.searchsorted(wanted, (start, stop))
        column = pc.struct_field(batch.column("image"), "bytes")
        for value in column.take(wanted[low:high] - start).to_pylist():
            yield value or b""
        if high == len(wanted):
            return
        start = stop


def choose_files(folder: Path) -> list[Path]:
    """Return the Parquet files of `folder` that belong together, by name; empty when it has none.

    Raises:
        ClipguardError: several files that are not the shards of one split.
    """
    files = sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))
    shards = {match and match.group("split", "total") for match in (SHARD.fullmatch(f.name) for f in files)}
    if len(files) > 1 and (len(shards) > 1 or None in shards):
        names = ", ".join(path.name for path in files[:5]) + (", ..." if len(files) > 5 else "")
        raise ClipguardError(
            f"{folder} holds {len(files)} Parquet files that may not belong together: choose one of {names}"
        )
    return files


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


def _metadata_names(opened: "pq.ParquetFile") -> tuple[str, ...] | None:
    """Return the class names in the schema's metadata; None when there are none to be made out."""
    text = (opened.schema_arrow.metadata or {}).get(b"huggingface")
    try:
        names = json.loads(text)["info"]["features"]["label"]["names"] if text else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


@dataclass(frozen=True, slots=True)
class _Shard:
    labels: Int64[np.ndarray, "n"]
    paths: list[Any] | None
    names: tuple[str, ...] | None


def _list_shard(path: Path) -> _Shard:
    import pyarrow.compute as pc

    with _opened(path) as opened:
        has_path = _check_columns(opened, path)
        table = opened.read(columns=["label", "image.path"] if has_path else ["label"])
        names = _metadata_names(opened)
    column = table.column("label")
    if column.null_count:
        labels = as_labels(np.array(column.to_pylist(), object), str(path))
    else:
        labels = as_labels(column.to_numpy(), str(path))
    paths = pc.struct_field(table.column("image"), "path").to_pylist() if has_path else None
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


def list_parquet(files: list[Path], location: Path) -> Listing:
    """Return the rows of all `files` in order; only labels and paths are held in memory.

    Raises:
        ClipguardError: not Parquet, other columns, null labels, no rows, or shards with other class names.
    """
    shards = [_list_shard(path) for path in files]
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
        reader=ParquetReader(tuple(files), tuple(int(start) for start in starts)),
    )
