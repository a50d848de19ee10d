"""Values to files and back: whole or not at all, never unpickled, never NaN where a number is meant."""

import contextlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Int64, Shaped

from clipguard.errors import ClipguardError, reason_of

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

Array = Shaped[np.ndarray, "..."]

Column = Array | Sequence[Any]
"""Of a table: numbers, or texts or bytes, None among them where there is none."""

GROUP_ROWS: Final = 131_072
"""Rows of a table that are written, and can be read, at a time."""

PART: Final = ".part"
"""Ending of what is no result: a file that is being written, or a folder to resume from. It is swept away."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path that replaces `path` at the end of the block, or is removed if that fails."""
    part = path.with_name(path.name + PART)
    try:
        yield part
        with part.open("rb") as opened:
            os.fsync(opened.fileno())
        part.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk refuses a write without saying of what
        raise


def refuse_full(folder: Path) -> None:
    """Refuse a folder that is to be written unless it is new or empty.

    Raises:
        ClipguardError: it is neither.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ClipguardError(f"{folder} exists and is not an empty folder: give a new one")


def check_writable(path: Path) -> None:
    """Make and remove the temporary folder of `new_folder`: a place that cannot be used is known at once.

    Raises:
        ClipguardError: `path` is there and is not an empty folder.
    """
    refuse_full(path)
    part = _part_of(path)
    made = [part, *(folder for folder in part.parents if not folder.exists())]
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _part_of(path: Path) -> Path:
    """Return the temporary folder beside `path`."""
    path = path.absolute()
    return path.with_name(f".{path.name}{PART}")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder that becomes `path` at the end of the block, or is removed if that fails.

    Raises:
        ClipguardError: `path` is there and is not an empty folder.
    """
    refuse_full(path)
    path, part = path.absolute(), _part_of(path)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if path == Path.cwd():
            # Whoever works in it would be left in a folder that is gone.
            for entry in list(part.iterdir()):
                entry.rename(path / entry.name)
            part.rmdir()
        else:
            part.rename(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        # A pipe would be waited for, a device may never end.
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise OSError("no regular file")
        yield
    except FileNotFoundError as error:
        raise ClipguardError(f"{path} is missing: run again to write it") from error
    # Arrow and deep JSON raise some that are not theirs.
    except (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError) as error:
        raise ClipguardError(
            f"{path} cannot be read ({reason_of(error)}): delete it and run again"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write `path` as UTF-8, all or nothing."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, all or nothing.

    Raises:
        ClipguardError: a number is NaN or Inf, which JSON does not know.
    """
    try:
        text = json.dumps(value, indent=1, ensure_ascii=True, allow_nan=False)
    except ValueError as error:
        raise ClipguardError(f"{path.name} would hold NaN or Inf: check the images and the model") from error
    write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Return the value in `path`.

    Raises:
        ClipguardError: the file is missing or damaged.
    """
    with _reading(path):
        return json.loads(path.read_text(encoding="utf-8"))


def write_array(path: Path, array: Array) -> None:
    """Write `path` (.npy), all or nothing.

    Raises:
        ClipguardError: a value is NaN or Inf.
    """
    _refuse_nonfinite(path.name, array)
    write_pieces(path, array.shape, array.dtype, [array])


def write_pieces(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], pieces: Iterable[Array]) -> None:
    """Write `path` (.npy), all or nothing, from pieces that follow each other along the first axis.

    By plain writes: on a full disk, a memory map would kill the process, and numpy's own would say little.
    """
    if dtype.hasobject:
        raise ValueError("objects would have to be pickled, and allow_pickle is never set")
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with replacing(path) as part, part.open("wb") as opened:
        np.lib.format.write_array_header_1_0(opened, header)
        for piece in pieces:
            opened.write(np.asarray(piece, dtype, order="C").data)


def read_array(path: Path, *, mmap: bool = False) -> Array:
    """Return the array in `path`, as a read-only memory map if `mmap`.

    Raises:
        ClipguardError: the file is missing or damaged.
    """
    with _reading(path):
        array: Array = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
        return array


def write_table(
    path: Path,
    columns: Mapping[str, Column],
    optional: Collection[str] = (),
    descriptions: Mapping[str, str] | None = None,
    order: Int64[np.ndarray, "n"] | None = None,
) -> None:
    """Write `path` (Parquet), all or nothing, some rows after the other: a large table is never there twice.

    Args:
        path: the file.
        columns: one entry a column, all of one length.
        optional: columns whose NaN mean "not computed"; they are written as nulls.
        descriptions: of columns, one line each, for the metadata of their fields.
        order: which row comes first, second and so on; as they are, if not given.

    Raises:
        ClipguardError: a value of another column is NaN or Inf, or a text is not Unicode.
    """
    import pyarrow.parquet as pq

    for name, values in columns.items():
        if name not in optional and isinstance(values, np.ndarray):
            _refuse_nonfinite(f"column {name} of {path.name}", values)
    n = len(next(iter(columns.values()), ()))
    with replacing(path) as part, contextlib.ExitStack() as stack:
        writer = None
        for start in range(0, max(1, n), GROUP_ROWS):
            rows = slice(start, start + GROUP_ROWS) if order is None else order[start : start + GROUP_ROWS]
            taken = {name: _taken(values, rows) for name, values in columns.items()}
            table = _arrow_table(path, taken, optional, None if writer is None else writer.schema)
            if writer is None:
                schema = _described(table.schema, descriptions or {})
                writer = stack.enter_context(pq.ParquetWriter(part, schema))
            writer.write_table(table.cast(writer.schema))


def _taken(values: Column, rows: slice | Int64[np.ndarray, "m"]) -> Column:
    """Return the values at a slice or at an array of places."""
    if isinstance(values, np.ndarray):
        array: Array = values[rows]
        return array
    if isinstance(rows, slice):
        return values[rows]
    # Arrays of text would drop zeros at its end.
    return [values[row] for row in rows]


def _arrow_table(
    path: Path,
    columns: Mapping[str, Column],
    optional: Collection[str],
    schema: "pa.Schema | None",
) -> "pa.Table":
    """Return the columns as a table, of the types of `schema` if one is given."""
    import pyarrow as pa

    arrays = {}
    for name, values in columns.items():
        kind = None if schema is None else schema.field(name).type
        try:
            arrays[name] = pa.array(values, kind, from_pandas=name in optional)
        except UnicodeEncodeError as error:
            raise ClipguardError(
                f"column {name} of {path.name}: {error.object!r} is not Unicode: rename it"
            ) from error
    return pa.table(arrays)


def _described(schema: "pa.Schema", descriptions: Mapping[str, str]) -> "pa.Schema":
    """Return the schema whose fields say in their metadata what their column means."""
    import pyarrow as pa

    known = {name: {"description": text} for name, text in descriptions.items()}
    return pa.schema([field.with_metadata(known.get(field.name)) for field in schema])


def read_table(path: Path, only: Collection[str] | None = None) -> dict[str, Array]:
    """Return the columns of `path` in order; texts as object arrays, nulls among numbers as NaN.

    Equal texts of a column are one object where they repeat: a row takes a pointer, not a text of its own.

    Args:
        path: the file.
        only: names of columns, which may be missing; all columns, if not given.

    Raises:
        ClipguardError: the file is missing or damaged.
    """
    import pyarrow.parquet as pq

    with _reading(path):
        with pq.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if only is None or name in only]
            repeated = [name for name in names if _repeats(file, name)]
        with pq.ParquetFile(path, read_dictionary=repeated) as file:
            # One by one: all columns together would be in memory twice for a moment.
            return {name: _values(file.read([name])[0]) for name in names}


def read_rows(path: Path, rows: Int64[np.ndarray, "m"], only: Collection[str]) -> dict[str, list[Any]]:
    """Return some rows of the columns of `only`, as far as `path` has them, as Python values.

    Raises:
        ClipguardError: the file is missing or damaged.
    """
    import pyarrow.parquet as pq

    with _reading(path), pq.ParquetFile(path) as file:
        names = [name for name in file.schema_arrow.names if name in only]
        columns: dict[str, list[Any]] = {name: [None] * len(rows) for name in names}
        start = 0
        for batch in file.iter_batches(columns=names):
            inside = np.flatnonzero((rows >= start) & (rows < start + len(batch)))
            for name in names:
                values = batch[name].take(rows[inside] - start).to_pylist()
                for place, value in zip(inside.tolist(), values, strict=True):
                    columns[name][place] = value
            start += len(batch)
        return columns


def _repeats(file: "pq.ParquetFile", name: str) -> bool:
    """Return whether a column holds texts of which the first ones repeat."""
    import pyarrow as pa

    first = next(file.iter_batches(65_536, columns=[name]), None)
    if first is None or not (pa.types.is_string(first[0].type) or pa.types.is_large_string(first[0].type)):
        return False
    return bool(2 * len(first[0].unique()) <= len(first))


def _values(column: "pa.ChunkedArray") -> Array:
    """Return a column as numpy has it; of a dictionary, one object for equal texts."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        values: Array = column.to_numpy()
        return values
    encoded = column.unify_dictionaries().combine_chunks()
    texts = np.array([*encoded.dictionary.to_pylist(), None], dtype=object)
    shared: Array = texts[encoded.indices.fill_null(len(texts) - 1).to_numpy()]
    return shared


def _refuse_nonfinite(what: str, values: Array) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        count = int((~np.isfinite(values)).sum())
        raise ClipguardError(f"{what} would hold {count} NaN or Inf: check the images and the model")
