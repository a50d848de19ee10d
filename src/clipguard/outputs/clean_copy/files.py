"""An image folder without the dropped files, and its tables without their rows."""

from collections.abc import Set
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from clipguard.data.folder import FolderReader
from clipguard.data.listing import Listing
from clipguard.data.metadata import FILES, inside_path, opened_table, path_column
from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits


def copy_folder(listing: Listing, rows: Int64[np.ndarray, "m"], part: Path, limits: Limits) -> None:
    """Write the files of `rows` below `part`, as they lie below the source, and the rows of its tables.

    Raises:
        ClipguardError: a file can no longer be read, or a table names its images in no usual column.
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
    for name in FILES:
        if (reader.root / name).is_file():
            _copy_table(reader, name, names, part, limits)


def _copy_table(reader: FolderReader, name: str, kept: Set[str], part: Path, limits: Limits) -> None:
    """Write a table without the records of other files than the kept ones; what stays has its own text."""
    file = reader.root / name
    there, records = opened_table(file, limits)
    column = reader.column if reader.column in there else path_column(there, file)
    with (part / name).open("w", encoding="utf-8", newline="") as copy:
        for text, fields in records:
            if fields is None or inside_path(fields.get(column), limits) in kept:
                copy.write(text)
