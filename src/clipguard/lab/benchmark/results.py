"""results.parquet: one row a cell and defence, nested figures as columns `outer_inner`. Needs no torch."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from clipguard.errors import ClipguardError, reason_of
from clipguard.runs.files import replacing
from clipguard.runs.summary import METRICS

Row = dict[str, Any]
"""Figures and settings of one cell and defence, by name."""

RESULTS_LOCK: Final = ".results.lock"
"""File in a benchmark's folder that is locked while what is made of all rows is written."""

_TEXTS: Final = ("settings", "contents", "versions")
"""Kept as JSON: their contents differ from row to row."""

_FIRST: Final = (
    *("data", "attack", "rate", "target", "guide", "degrade", "net", "epochs", "variant"),
    *("seed", "row", "defense", "error", "attack_succeeded"),
    *(metric.name for metric in METRICS),
    *("n", "attack_n", "attack_successes", "class_recalls"),
    *("paired_n", "paired_lost", "paired_gained"),
    *("paired_target_n", "paired_target_lost", "paired_target_gained"),
    *("train_n", "poisoned", "cover", "guide_accuracy", "guide_pass_seconds"),
    *("detection_poisoned", "detection_poison_in_clean"),
    *("detection_auroc_guide", "detection_auroc_early", "detection_auroc_suspicion"),
    "detection_found_at_1_percent",
    *("detection_flagged_recall", "detection_flagged_precision", "detection_false_positive_rate"),
    *("detection_class_sizes", "detection_class_wrongly_flagged"),
)
"""Columns that are always there, in this order; the others follow as they come."""

_RATES: Final = {metric.name for metric in METRICS}


def write_results(rows: list[Row], path: Path) -> None:
    """Write `path` (Parquet), all or nothing; what a row lacks is null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = [dict(_flat(row)) for row in rows]
    names = dict.fromkeys((*_FIRST, *(name for row in flat for name in row)))
    columns = {name: pa.array([row.get(name) for row in flat]) for name in names}
    with replacing(path) as part:
        pq.write_table(pa.table(columns), part)


def read_results(run: Path) -> list[Row]:
    """Return the rows of a benchmark's results.parquet.

    Raises:
        ClipguardError: it is missing, damaged, or of another version.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = run / "results.parquet"
    if not path.is_file():
        raise ClipguardError(f"{run} has no results.parquet: give the folder that clipguard bench wrote")
    try:
        # A file of its own: a folder's name such as seed=0 would otherwise become a column.
        with pq.ParquetFile(path) as file:
            rows: list[Row] = file.read().to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise ClipguardError(
            f"{path} cannot be read ({reason_of(error)}): run clipguard bench again"
        ) from error
    metrics = {metric.name: None for metric in METRICS}
    # A metric may have come later than the rows; any other column has been there from the beginning.
    rows = [metrics | row for row in rows]
    if missing := [name for name in _FIRST if rows and name not in rows[0]]:
        raise ClipguardError(
            f"{path} lacks the column {missing[0]!r}: another version of clipguard has written it"
        )
    for row in rows:
        if wrong := next((name for name in _FIRST if not _is_of_kind(name, row)), None):
            raise ClipguardError(
                f"{path}, column {wrong!r} holds {row[wrong]!r:.50}: run clipguard bench again"
            )
    return rows


def total_seconds(row: Row) -> float | None:
    """Return what a row's defence takes in all, in seconds; None where it names no time.

    The guide's pass counts where a scan is part of the defence: the stage itself finds a cache.
    """
    stages = {name: row[name] for name in row if name.startswith("seconds_") and row[name] is not None}
    if not stages:
        return None
    guided = row.get("guide_pass_seconds") if "seconds_embeddings" in stages else None
    return float(sum(stages.values()) + (guided or 0.0))


def _is_of_kind(name: str, row: Row) -> bool:
    if name in ("data", "attack", "guide", "net", "row", "defense"):
        return isinstance(row[name], str)
    return name not in _RATES or row[name] is None or isinstance(row[name], float | int)


def _flat(row: Row, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if name in _TEXTS:
            yield prefix + name, json.dumps(value, sort_keys=True)
        elif isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}_")
        elif prefix and type(value) in (int, float):
            # Whole numbers where others are fractions would make a column of two types.
            yield prefix + name, float(value)
        else:
            yield prefix + name, value
