"""The rows of samples.parquet as plain values, a few at a time: there may be millions."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipguard.errors import ClipguardError
from clipguard.outputs.samples import read_samples
from clipguard.runs.samples_table import COLUMNS, SAMPLES

BATCH = 4096


def column_names(run: Path) -> list[str]:
    """Return the names of the columns in their order.

    Raises:
        ClipguardError: the table is missing, damaged, or lacks a column.
    """
    import pyarrow.parquet as pq

    read_samples(run, order="table")  # whether the table makes sense
    names: list[str] = pq.read_schema(run / SAMPLES).names
    if missing := [column.name for column in COLUMNS if column.name not in names]:
        raise ClipguardError(f"{run / SAMPLES} lacks the column {missing[0]}: run again to write it")
    return names


def rows_of(run: Path) -> Iterator[dict[str, Any]]:
    """Return the samples in the order of the table by column name, None for NaN; see `column_names`."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(run / SAMPLES) as opened:
        for batch in opened.iter_batches(BATCH):
            yield from ({name: _finite(value) for name, value in row.items()} for row in batch.to_pylist())


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
