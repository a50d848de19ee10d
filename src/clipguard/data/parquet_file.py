"""One Parquet file, read by Arrow: labels, paths, groups and names, then cells by row.

Arrow is a large library in C++; where the limits say so, a sandboxed worker runs this.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int64

from clipguard.data.columns import NO_COLUMNS, Columns
from clipguard.data.labels import group_numbers, label_values
from clipguard.data.listing import Failed, printable
from clipguard.data.parquet_columns import Layout, batch_rows, layout_of
from clipguard.errors import ClipguardError, reason_of
from clipguard.safety.limits import Limits, parse_json

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

# Arrow's own defaults for the text and the entries of a footer; written here, so that they stay.
FOOTER_BYTES = 100_000_000
FOOTER_ENTRIES = 1_000_000


@dataclass(frozen=True, slots=True)
class Shard:
    """What is known of a file before its images are read.

    Attributes:
        labels: numbers, or indices into `texts`.
        texts: the distinct labels where they are texts.
        paths: of the images; None where there are none to be used.
        groups_of_rows: what the column of groups holds, as text; None without such a column.
        names: of the classes, by the schema's metadata.
        groups: the first rows of its row groups.
        outside: whether the images are files at `paths` instead of cells.
    """

    labels: Int64[np.ndarray, "n"]
    texts: tuple[str, ...] | None
    paths: list[Any] | None
    groups_of_rows: list[str | None] | None
    names: tuple[str, ...] | None
    groups: Int64[np.ndarray, "g"]
    outside: bool


def read_cells(
    path: Path, name: str, rows: Int64[np.ndarray, "m"], limits: Limits, columns: Columns = NO_COLUMNS
) -> Generator[bytes | Failed, None, None]:
    """Return the images' bytes at `rows`, which ascend; none where they are null.

    A `path` beside them is not followed here: it comes from the data.

    Raises:
        ClipguardError: no Parquet, or fewer rows than it claims; the line calls the file `name`.
    """
    count, most = 0, limits.file_bytes
    with _opened(path, name) as opened:
        for value in _read_shard(opened, layout_of(opened, name, columns), rows):
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


def _read_shard(
    opened: "pq.ParquetFile", layout: Layout, rows: Int64[np.ndarray, "m"]
) -> Iterator[bytes | None]:
    start = 0
    for group in range(opened.num_row_groups):
        stop = start + opened.metadata.row_group(group).num_rows
        inside = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)] - start
        if len(inside):
            yield from _read_group(opened, layout, group, inside)
        start = stop


def _read_group(
    opened: "pq.ParquetFile", layout: Layout, group: int, rows: Int64[np.ndarray, "m"]
) -> Iterator[bytes | None]:
    import pyarrow.compute as pc

    start = 0
    most = batch_rows(opened.metadata.row_group(group))
    for batch in opened.iter_batches(most, row_groups=[group], columns=[layout.cells]):
        stop = start + batch.num_rows
        low, high = np.searchsorted(rows, (start, stop))
        column = batch.column(layout.image)
        column = pc.struct_field(column, "bytes") if layout.form == "struct" else column
        yield from column.take(rows[low:high] - start).to_pylist()
        if high == len(rows):
            return
        start = stop


def _metadata_names(opened: "pq.ParquetFile", label: str, limits: Limits) -> tuple[str, ...] | None:
    """Return the class names in the schema's metadata; None when there are none to be made out."""
    text = (opened.schema_arrow.metadata or {}).get(b"huggingface")
    try:
        names = parse_json(text, limits)["info"]["features"][label]["names"] if text else None
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(printable(name) for name in names)


def list_shard(path: Path, name: str, limits: Limits, columns: Columns = NO_COLUMNS) -> Shard:
    """Return labels, paths, groups and class names of a file.

    Raises:
        ClipguardError: no Parquet, other columns, null labels, or other rows than it claims; the line calls
            the file `name`.
    """
    with _opened(path, name) as opened:
        layout = layout_of(opened, name, columns)
        claimed = opened.metadata.num_rows
        sizes = [opened.metadata.row_group(number).num_rows for number in range(opened.num_row_groups)]
        groups = np.cumsum([0, *sizes[:-1]], dtype=np.int64)
        if claimed > limits.members:
            raise ClipguardError(f"{name} claims {claimed} rows, more than the limit of {limits.members}")
        read = (layout.label, layout.path, layout.group)
        table = opened.read(columns=list(dict.fromkeys(column for column in read if column)))
        names = _metadata_names(opened, layout.label, limits)
        labels, texts = _labels(table.column(layout.label), name)
        paths = _paths(table, layout)
        groups_of_rows = None if layout.group is None else _groups(table.column(layout.group), name)
    if len(labels) != claimed:
        raise ClipguardError(f"{name} claims {claimed} rows but holds {len(labels)}: get it again")
    if paths is not None and any(len(path or "") > limits.name_length for path in paths):
        paths = None
    return Shard(labels, texts, paths, groups_of_rows, names, groups, layout.form == "paths")


def _labels(column: "pa.ChunkedArray", name: str) -> tuple[Int64[np.ndarray, "n"], tuple[str, ...] | None]:
    """Return labels as numbers, or texts as indices and the distinct ones."""
    import pyarrow as pa

    plain = column.null_count == 0 and (pa.types.is_integer(column.type) or pa.types.is_floating(column.type))
    values = column.to_numpy() if plain else np.array(column.to_pylist(), object)
    given = label_values(values, name)
    if isinstance(given, np.ndarray):
        return given, None
    distinct, codes = np.unique(np.array(given, object), return_inverse=True)
    return codes.astype(np.int64), tuple(printable(text) for text in distinct.tolist())


def _paths(table: "pa.Table", layout: Layout) -> list[Any] | None:
    import pyarrow.compute as pc

    if layout.path is None:
        return None
    column = table.column(layout.image)
    paths: list[Any] = (pc.struct_field(column, "path") if "." in layout.path else column).to_pylist()
    return paths


def _groups(column: "pa.ChunkedArray", name: str) -> list[str | None]:
    values = column.to_pylist()
    group_numbers(values, name)
    return [None if value is None else printable(str(value)) for value in values]
