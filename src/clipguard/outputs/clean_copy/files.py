"""An image folder without the dropped files, and its tables without their rows."""

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int64

from clipguard.data.folder import FolderReader
from clipguard.data.listing import Listing
from clipguard.errors import ClipguardError, reason_of
from clipguard.safety.limits import Limits, parse_json, read_bounded

TABLES: Final = ("metadata.csv", "metadata.jsonl")
"""What Hugging Face calls the table of an image folder."""

Kept = Callable[[Mapping[str, Any]], bool]


def copy_folder(listing: Listing, rows: Int64[np.ndarray, "m"], part: Path, limits: Limits) -> None:
    """Write the files of `rows` below `part`, as they lie below the source, and the rows of its tables.

    Raises:
        ClipguardError: a file can no longer be read.
    """
    reader = listing.reader
    assert isinstance(reader, FolderReader)
    for row, content in zip(rows.tolist(), reader.read(rows), strict=True):
        if not isinstance(content, bytes):
            raise ClipguardError(f"{listing.ids[row]!r} of {listing.location} can no longer be read")
        file = part / reader.paths[row]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    names = {reader.paths[row] for row in rows.tolist()}
    for table in (reader.root / name for name in TABLES):
        if table.is_file():
            (part / table.name).write_text(_table_of(table, names, limits), "utf-8", newline="\n")


def _table_of(file: Path, names: set[str], limits: Limits) -> str:
    """Return a table without the rows that name none of the files."""

    def kept(row: Mapping[str, Any]) -> bool:
        paths = (value for value in row.values() if isinstance(value, str))
        return any(path.replace("\\", "/").removeprefix("./") in names for path in paths)

    try:
        text = read_bounded(file, limits.json_bytes).decode("utf-8-sig")
        return _csv_rows(text, kept) if file.suffix == ".csv" else _json_lines(text, kept, limits)
    except (OSError, ValueError, csv.Error) as error:
        raise ClipguardError(f"table {file} cannot be copied: {reason_of(error)}") from error


def _csv_rows(text: str, kept: Kept) -> str:
    reader, written = csv.DictReader(io.StringIO(text, newline="")), io.StringIO()
    writer = csv.DictWriter(written, reader.fieldnames or [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(row for row in reader if kept(row))
    return written.getvalue()


def _json_lines(text: str, kept: Kept, limits: Limits) -> str:
    rows = (parse_json(line, limits) for line in text.splitlines() if line.strip())
    lines = (json.dumps(row, ensure_ascii=False) for row in rows if isinstance(row, dict) and kept(row))
    return "".join(f"{line}\n" for line in lines)
