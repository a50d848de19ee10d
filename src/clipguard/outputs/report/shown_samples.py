"""The samples that the page shows: flagged ones, and apart from them the most suspicious others."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int64

from clipguard.outputs.report.causes import Cause
from clipguard.outputs.report.columns import texts_of
from clipguard.outputs.report.size import FLAGGED_TEXTS, OTHER_TEXTS, fitting
from clipguard.outputs.samples import Table
from clipguard.types import STATES, Partition, State

FLAGGED: Final = 1000
"""How many flagged samples are shown at most, the most suspicious first."""

UNFLAGGED: Final = 48
"""How many of the most suspicious other samples are shown; so many more that there are `LEAST` in all."""

LEAST: Final = 100

KEPT: Final = 200
"""How many samples that only a review mark keeps from being flagged are shown beside them."""

NUMBERS: Final = (
    *("row", "rank", "trigger", "poison_score", "q_value", "trigger_score"),
    *("guide_nll", "early_nll", "guide_rank", "early_rank"),
)
"""The numbers that are shown of a sample."""


def shown_samples(
    run: Path, table: Table, partition: Partition, causes: Sequence[Cause]
) -> tuple[Int64[np.ndarray, "m"], list[dict[str, Any]]]:
    """Return the rows of the samples that are shown, and what is said of each, None for what is not known.

    The flagged samples come first, in order of suspicion, then the others.
    """
    order = np.argsort(table["rank"], kind="stable").astype(np.int64)
    flagged = order[partition.flagged[order]][:FLAGGED]
    others = _unflagged(order[~partition.flagged[order]], partition, max(UNFLAGGED, LEAST - len(flagged)))
    cause_of = {int(row): place for place, cause in enumerate(causes) for row in cause.rows}
    rows, samples = [], []
    for some, limit in ((flagged, FLAGGED_TEXTS), (others, OTHER_TEXTS)):
        described = _described(run, table, partition, some)
        count = fitting(described, limit)
        rows.append(some[:count])
        samples += described[:count]
    every: Int64[np.ndarray, m] = np.concatenate(rows)
    for number, (row, sample) in enumerate(zip(every.tolist(), samples, strict=True)):
        sample |= {"number": number, "cause": cause_of.get(row, -1)}
    return every, samples


def _unflagged(order: Int64[np.ndarray, "n"], partition: Partition, count: int) -> Int64[np.ndarray, "m"]:
    """Return the first `count` samples, and the first `KEPT` of those that a review mark keeps."""
    kept = partition.has(State.KEPT)[order]
    places = np.concatenate([np.flatnonzero(kept)[:KEPT], np.flatnonzero(~kept)[:count]])
    chosen: Int64[np.ndarray, m] = order[np.sort(places)]
    return chosen


def _described(
    run: Path, table: Table, partition: Partition, rows: Int64[np.ndarray, "m"]
) -> list[dict[str, Any]]:
    columns: dict[str, Sequence[Any]] = {**texts_of(run, rows)}
    for name in NUMBERS:
        values = table[name][rows].tolist() if name in table else [None] * len(rows)
        columns[name] = [None if value is None or not np.isfinite(value) else value for value in values]
    states = [STATES[State(state)] for state in partition.state[rows]]
    columns |= {"status": [one.status for one in states], "reason": [one.reason for one in states]}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
