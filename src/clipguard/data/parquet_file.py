"""One Parquet file in the Hugging Face layout, read by Arrow: labels, paths and names, then cells by row.

Arrow is a large library in C++; where the limits say so, a sandboxed worker runs this.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Int64

from clipguard.data.listing import Failed, as_labels, printable
from clipguard.errors import ClipguardError, reason_of
from clipguard.safety.limits import MIB, Limits, parse_json

if TYPE_CHECKING:
    import pyarrow.parquet as pq

IMAGES: Final = ("image", "img")
LABELS: Final = ("label", "labels", "fine_label")
"""What the Hub calls the columns (CIFAR has `img`, CIFAR-100 `fine_label`); the first found counts."""

# Few enough that a batch of large photographs stays far below Arrow's 2 GiB for one array of bytes.
BATCH_ROWS = 128
BATCH_BYTES = 256 * MIB
# Arrow's own defaults for the text and the entries of a footer; written here, so that they stay.
FOOTER_BYTES = 100_000_000
FOOTER_ENTRIES = 1_000_000


@dataclass(frozen=True, slots=True)
class Shard:
    """What is known of a file before its images are read; no paths where there are none to be used.

    `groups` are the first rows of its row groups.
    """

    labels: Int64[np.ndarray, "n"]
    paths: list[Any] | None
    names: tuple[str, ...] | None
    groups: Int64[np.ndarray, "g"]


def read_cells(
    path: Path, name: str, rows: Int64[np.ndarray, "m"], limits: Limits
) -> Generator[bytes | Failed, None, None]:
    """Return the images' bytes at `rows`, which ascend; none where they are null.

    A `path` beside them is never followed: it comes from the data.

    Raises:
        ClipguardError: no Parquet, or fewer rows than it claims; the line calls the file `name`.
    """
    count, most = 0, limits.file_bytes
    with _opened(path, name) as opened:
        for value in _read_shard(opened, rows):
            count += 1
            if value is not None and len(value) > most:
                yield Failed(f"{len(value)} bytes, more than the limit of {most}")
            else:
                yield value or b""
    if count < len(rows):
        raise ClipguardError(f"{name} holds fewer rows than it claims: get it again")


@contextmanager
def _opened(path: Path, name: str) -> "Iterator[pq.ParquetFile]":
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
        raise ClipguardError(f"{name} cannot be read as Parquet: {reason_of(error)}") from error


def _read_shard(opened: "pq.ParquetFile", rows: Int64[np.ndarray, "m"]) -> Iterator[bytes | None]:
    start = 0
    for group in range(opened.num_row_groups):
        stop = start + opened.metadata.row_group(group).num_rows
        inside = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)] - start
        if len(inside):
            yield from _read_group(opened, group, inside)
        start = stop


def _batch_rows(group: "pq.RowGroupMetaData") -> int:
    """Return how many rows of a row group are read at once: few where its cells are huge."""
    size, rows = int(group.total_byte_size), int(group.num_rows)
    mean = max(1, size // max(1, rows))
    return max(1, min(BATCH_ROWS, BATCH_BYTES // mean))


def _read_group(opened: "pq.ParquetFile", group: int, rows: Int64[np.ndarray, "m"]) -> Iterator[bytes | None]:
    import pyarrow.compute as pc

    start = 0
    most = _batch_rows(opened.metadata.row_group(group))
    image = _columns(opened.schema_arrow.names)[0]
    for batch in opened.iter_batches(most, row_groups=[group], columns=[f"{image}.bytes"]):
        stop = start + batch.num_rows
        low, high = np.searchsorted(rows, (start, stop))
        column = pc.struct_field(batch.column(image), "bytes")
        yield from column.take(rows[low:high] - start).to_pylist()
        if high == len(rows):
            return
        start = stop


def _columns(schema: Sequence[str]) -> tuple[str, str]:
    """Return the names of the columns of images and labels, the usual ones where there are none."""
    image = next((name for name in IMAGES if name in schema), IMAGES[0])
    return image, next((name for name in LABELS if name in schema), LABELS[0])


def _check_columns(opened: "pq.ParquetFile", name: str) -> bool:
    """Return whether the images have a `path` beside their bytes; raise when the columns are not ours."""
    import pyarrow as pa

    schema = opened.schema_arrow
    names = _columns(schema.names)
    missing = [column for column in names if column not in schema.names]
    if missing:
        raise ClipguardError(
            f"{name} lacks the column {missing[0]!r}: it has {', '.join(schema.names)[:200]}"
        )
    image, label = (schema.field(column).type for column in names)
    fields = {field.name: field.type for field in image} if pa.types.is_struct(image) else {}
    content = fields.get("bytes")
    if content is None or not (pa.types.is_binary(content) or pa.types.is_large_binary(content)):
        raise ClipguardError(
            f"column {names[0]!r} of {name} must be struct<bytes: binary, path: string>, not {image}"
        )
    if not pa.types.is_integer(label):
        raise ClipguardError(f"column {names[1]!r} of {name} must hold integers, not {label}")
    path_type = fields.get("path", pa.null())
    return bool(pa.types.is_string(path_type) or pa.types.is_large_string(path_type))


def _metadata_names(opened: "pq.ParquetFile", limits: Limits) -> tuple[str, ...] | None:
    """Return the class names in the schema's metadata; None when there are none to be made out."""
    text = (opened.schema_arrow.metadata or {}).get(b"huggingface")
    label = _columns(opened.schema_arrow.names)[1]
    try:
        names = parse_json(text, limits)["info"]["features"][label]["names"] if text else None
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(printable(name) for name in names)


def list_shard(path: Path, name: str, limits: Limits) -> Shard:
    """Return labels, paths and class names of a file.

    Raises:
        ClipguardError: no Parquet, other columns, null labels, or other rows than it claims; the line calls
            the file `name`.
    """
    import pyarrow.compute as pc

    with _opened(path, name) as opened:
        has_path = _check_columns(opened, name)
        claimed = opened.metadata.num_rows
        sizes = [opened.metadata.row_group(number).num_rows for number in range(opened.num_row_groups)]
        groups = np.cumsum([0, *sizes[:-1]], dtype=np.int64)
        if claimed > limits.members:
            raise ClipguardError(f"{name} claims {claimed} rows, more than the limit of {limits.members}")
        image, label = _columns(opened.schema_arrow.names)
        table = opened.read(columns=[label, f"{image}.path"] if has_path else [label])
        names = _metadata_names(opened, limits)
        column = table.column(label)
        values = np.array(column.to_pylist(), object) if column.null_count else column.to_numpy()
        labels = as_labels(values, name)
        paths = pc.struct_field(table.column(image), "path").to_pylist() if has_path else None
    if len(labels) != claimed:
        raise ClipguardError(f"{name} claims {claimed} rows but holds {len(labels)}: get it again")
    if paths is not None and any(len(path or "") > limits.name_length for path in paths):
        paths = None
    return Shard(labels, paths, names, groups)
