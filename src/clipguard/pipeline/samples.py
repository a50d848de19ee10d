"""The table of samples: what a scan says of each of them, the flagged ones first, and lists of those."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float64, Int64

from clipguard.data.provenance import ROWS, recorded_rows, recorded_source
from clipguard.pipeline.scan import Scan
from clipguard.runs import write_table
from clipguard.runs.lists import write_csv, write_names
from clipguard.runs.samples_table import DESCRIPTIONS, SAMPLES, in_table_order
from clipguard.types import STATES, Partition, StepProgress

FLAGGED_NAMES: Final = "flagged.txt"
FLAGGED_TABLE: Final = "flagged.csv"
LISTED: Final = (
    *("row", "id", "path", "sha256", "given_label", "predicted_label", "reason", "poison_score", "q_value"),
    *("rank", "trigger"),
)
"""The columns of flagged.csv, as far as the scan has them."""


def write_samples(scan: Scan, folder: Path, progress: StepProgress) -> None:
    """Write samples.parquet, one row a readable sample, and flagged.csv and flagged.txt."""
    data, partition, source = scan.data, scan.partition, scan.context.source
    names = np.array(data.class_names, dtype=object)
    embeddings = scan.context.finished["embeddings"].path
    kept = np.delete(np.arange(len(source)), recorded_source(embeddings)["unreadable_rows"])
    columns = {
        "row": source.rows[kept],
        "id": np.array(data.ids, dtype=object),
        "path": np.array(source.paths, dtype=object)[kept],
        "sha256": np.array([*sample_hashes(embeddings)], dtype=object),
        "label": data.labels,
        "given_label": names[data.labels],
        "predicted_label": names[scan.likeliest],
        **status_columns(partition),
        "poison_score": partition.suspicion,
        "rank": ranks(data.ids, partition.suspicion),
        "trigger": partition.trigger + 1,
        **scan.columns,
    }
    table, order = in_table_order(columns)
    write_table(folder / SAMPLES, table, descriptions=DESCRIPTIONS, order=order)
    # They come first in the table.
    _write_flagged(table, order[: int(partition.flagged.sum())], folder)


def _write_flagged(table: Mapping[str, Any], rows: Int64[np.ndarray, "m"], folder: Path) -> None:
    """Write the flagged samples, at `rows` of the columns: all that is known, and names alone."""
    header = [name for name in LISTED if name in table]
    columns = (np.asarray(table[name])[rows].tolist() for name in header)
    write_csv(folder / FLAGGED_TABLE, header, zip(*columns, strict=True))
    names = zip(table["path"][rows], table["id"][rows], strict=True)
    write_names(folder / FLAGGED_NAMES, (path or name for path, name in names))


def sample_hashes(embeddings: Path) -> Iterator[str]:
    """Return the sha256 of each readable image in hex, in the order of the source."""
    for file in sorted((embeddings / ROWS).glob("*.parquet")):
        recorded = recorded_rows(file)
        yield from (recorded.sha256[place].hex() for place in recorded.readable)


def status_columns(partition: Partition) -> dict[str, Any]:
    """Return the columns that say what becomes of each sample."""
    names = [STATES[state] for state in sorted(STATES)]
    status, reason = (np.array(texts, object) for texts in zip(*[name[:2] for name in names], strict=True))
    return {"status": status[partition.state], "reason": reason[partition.state]}


def ranks(ids: Sequence[str], suspicion: Float64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
    """Return the place of each sample in the list of all, 1 for the most suspicious.

    Ties go by name and not by row, so that a shuffled data set gives the same list.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    table = pa.table({"suspicion": suspicion, "id": pa.array(ids, pa.string())})
    order = pc.sort_indices(table, [("suspicion", "descending"), ("id", "ascending")])
    rank = np.empty(len(ids), dtype=np.int64)
    rank[np.asarray(order)] = np.arange(1, len(ids) + 1)
    return rank
