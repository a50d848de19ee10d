"""Which columns of a Parquet file are read, and in which of three forms its images are."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from clipguard.data.columns import Columns, column_of, group_column
from clipguard.errors import ClipguardError
from clipguard.safety.limits import MIB

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

Form = Literal["struct", "bytes", "paths"]

# Few enough that a batch of large photographs stays far below Arrow's 2 GiB for one array of bytes.
BATCH_ROWS: Final = 128
BATCH_BYTES: Final = 256 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The columns of a file.

    Attributes:
        image: the column of images.
        form: `struct` of bytes and path, as `datasets` writes; plain `bytes`; or `paths` of files.
        path: the column of paths, by which rows are named; None without any.
        label: the column of labels.
        group: the column of groups, if it was asked for.
    """

    image: str
    form: Form
    path: str | None
    label: str
    group: str | None

    @property
    def cells(self) -> str:
        """The column that holds encoded images."""
        return f"{self.image}.bytes" if self.form == "struct" else self.image


def layout_of(opened: "pq.ParquetFile", name: str, columns: Columns) -> Layout:
    """Return the columns of a file.

    Raises:
        ClipguardError: it lacks one, or holds values of another kind there; the line calls the file `name`.
    """
    schema = opened.schema_arrow
    image = column_of("image", columns, schema.names, name)
    label = column_of("label", columns, [one for one in schema.names if one != image], name)
    group = group_column(columns, schema.names, name)
    form, path = _form(schema.field(image).type, image, name)
    if form == "struct" and path is not None and _all_null(opened, image):
        form = "paths"
    if not _is_label(schema.field(label).type):
        raise ClipguardError(
            f"column {label!r} of {name} must hold integers or texts, not {schema.field(label).type}: "
            "say which with --label-column (in Python: Columns)"
        )
    return Layout(image=image, form=form, path=path, label=label, group=group)


def _form(kind: "pa.DataType", image: str, name: str) -> tuple[Form, str | None]:
    import pyarrow as pa

    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return "bytes", None
    if _is_text(kind):
        return "paths", image
    fields = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
    content: Any = fields.get("bytes")
    if content is None or not (pa.types.is_binary(content) or pa.types.is_large_binary(content)):
        raise ClipguardError(
            f"column {image!r} of {name} must be struct<bytes: binary, path: string>, binary, or paths as "
            f"string, not {kind}: say which with --image-column (in Python: Columns)"
        )
    return "struct", f"{image}.path" if _is_text(fields.get("path", pa.null())) else None


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_label(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    plain = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    return _is_text(kind) or any(test(kind) for test in plain)


def batch_rows(group: "pq.RowGroupMetaData") -> int:
    """Return how many rows of a row group are read at once: few where its cells are huge."""
    size, rows = int(group.total_byte_size), int(group.num_rows)
    mean = max(1, size // max(1, rows))
    return max(1, min(BATCH_ROWS, BATCH_BYTES // mean))


def _all_null(opened: "pq.ParquetFile", image: str) -> bool:
    """Tell whether a column's bytes are all null.

    The file's own statistics are asked first, which costs nothing; where they say so, all cells are read,
    since whoever wrote the file wrote its statistics, too.
    """
    import pyarrow.compute as pc

    column = f"{image}.bytes"
    if not _said_to_be_null(opened, column):
        return False
    nulls = 0
    for group in range(opened.num_row_groups):
        most = batch_rows(opened.metadata.row_group(group))
        for batch in opened.iter_batches(most, row_groups=[group], columns=[column]):
            cells = pc.struct_field(batch.column(image), "bytes")
            if cells.null_count < len(cells):
                return False
            nulls += len(cells)
    return bool(nulls == opened.metadata.num_rows)


def _said_to_be_null(opened: "pq.ParquetFile", column: str) -> bool:
    """Tell whether the file's own statistics say that a column holds nothing but nulls."""
    metadata = opened.metadata
    if not metadata.num_rows:
        return False
    places = [place for place in range(metadata.num_columns) if metadata.schema.column(place).path == column]
    if len(places) != 1:
        return False
    for group in range(metadata.num_row_groups):
        statistics = metadata.row_group(group).column(places[0]).statistics
        if statistics is None or statistics.null_count != metadata.row_group(group).num_rows:
            return False
    return True
