"""Parquet files without the dropped rows: all columns, the schema's metadata and the files named stay."""

from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Int64

from clipguard.data.listing import Listing
from clipguard.data.parquet import ParquetReader
from clipguard.errors import ClipguardError, reason_of
from clipguard.safety.limits import Limits

BATCH: Final = 128
"""Rows that are in memory at once, and that a row group of the copy has at most."""


def copy_parquet(listing: Listing, rows: Int64[np.ndarray, "m"], part: Path, limits: Limits) -> None:
    """Write a file of each shard's name with its rows among `rows`, perhaps none, and the files they name.

    Arrow reads here in this process. The source has been read whole by its sandboxed reader before.

    Raises:
        ClipguardError: a shard or a file can no longer be read.
    """
    reader = listing.reader
    assert isinstance(reader, ParquetReader)
    cuts = np.searchsorted(rows, reader.firsts)
    for number, file in enumerate(reader.files):
        inside = rows[cuts[number] : cuts[number + 1]] - reader.firsts[number]
        _copy_rows(file, inside, part / file.name)
    if reader.paths is not None:
        _copy_files(listing, reader, rows, part)


def _copy_rows(file: Path, rows: Int64[np.ndarray, "m"], target: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as opened, pq.ParquetWriter(target, opened.schema_arrow) as writer:
            start = 0
            for batch in opened.iter_batches(BATCH):
                low, high = np.searchsorted(rows, (start, start + batch.num_rows))
                if high > low:
                    writer.write_batch(batch.take(pa.array(rows[low:high] - start)))
                start += batch.num_rows
    except pa.ArrowException as error:
        raise ClipguardError(f"{file} can no longer be read as Parquet: {reason_of(error)}") from error


def _copy_files(listing: Listing, reader: ParquetReader, rows: Int64[np.ndarray, "m"], part: Path) -> None:
    """Write the images of a table of paths below `part`, as they lie below the folder of the table."""
    copied: set[Path] = set()
    for row, content in zip(rows.tolist(), reader.read(rows), strict=True):
        name = (reader.paths or ())[row]
        if name is None or not isinstance(content, bytes):
            raise ClipguardError(f"{listing.ids[row]!r} of {listing.location} can no longer be read")
        file = part / name
        if file in copied:
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with file.open("xb") as copy:
                copy.write(content)
        except FileExistsError as error:
            raise ClipguardError(
                f"{name!r} of {listing.location} has the name of another file in the copy: rename it "
                "and scan anew"
            ) from error
        copied.add(file)
