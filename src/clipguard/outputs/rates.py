"""The rates of a model before and after its repair, as the rows of one table."""

from typing import Final, NamedTuple

from clipguard.runs.summary import METRICS, Metric, Rates

_NOISE: Final = 0.5
"""Percentage points below which a change is chance on any test set of usual size."""


class RateRow(NamedTuple):
    """A rate before and after the repair; `change` is in percentage points, `tone` good, bad or empty."""

    metric: Metric
    before: int | float | None
    after: int | float | None
    change: str
    tone: str


def rate_rows(before: Rates | None, after: Rates | None) -> list[RateRow]:
    """Return a row for each rate that was measured at least once."""
    rows = (_row(m, getattr(before, m.name, None), getattr(after, m.name, None)) for m in METRICS)
    return [row for row in rows if (row.before, row.after) != (None, None)]


def _row(metric: Metric, before: int | float | None, after: int | float | None) -> RateRow:
    if before is None or after is None:
        return RateRow(metric, before, after, "–", "")
    points = 100 * (after - before)
    tone = "" if abs(points) < _NOISE else "good" if points * metric.better > 0 else "bad"
    return RateRow(metric, before, after, f"{points:+.1f}".replace("-", "−"), tone)
