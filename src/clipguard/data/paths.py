"""The file of each image, as results name it: below the folder, or inside its shard."""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from clipguard.data.listing import Reader, printable
from clipguard.data.parquet import ParquetReader
from clipguard.data.tar import TarReader


def sample_paths(
    kind: str, ids: Sequence[str], reader: Reader, rows: Int64[np.ndarray, "n"]
) -> tuple[str, ...]:
    """Return one path a sample, empty where the source names no file.

    Args:
        kind: of the source.
        ids: of the samples.
        reader: of the source.
        rows: the reader's row number of each sample.
    """
    if kind == "folder":
        return tuple(ids)
    if isinstance(reader, TarReader):
        return tuple(
            printable(f"{reader.files[reader.places[row, 0]].name}/{reader.names[row]}") for row in rows
        )
    if isinstance(reader, ParquetReader) and not _numbered(ids[0], reader):
        return tuple(ids)
    return ("",) * len(ids)


def _numbered(name: str, reader: ParquetReader) -> bool:
    """Return whether an id is no path of its own: the file of the table, and the row in it."""
    files = "|".join(re.escape(printable(file.name)) for file in reader.files)
    return re.fullmatch(rf"({files}):[0-9]+", name) is not None
