"""A run's summary for those who show it: checked, with its rates as the rows of one table."""

import json
from pathlib import Path
from typing import Final, NamedTuple

from clipguard.errors import ClipguardError
from clipguard.outputs.text import VERDICTS
from clipguard.runs.summary import METRICS, SUMMARY, Metric, Rates, RunSummary, plain, read_summary

_NOISE: Final = 0.5
"""Percentage points below which a change is chance on any test set of usual size."""


class RateRow(NamedTuple):
    """A rate before and after the repair; `change` is in percentage points, `tone` good, bad or empty."""

    metric: Metric
    before: int | float | None
    after: int | float | None
    change: str
    tone: str


def read_checked_summary(run: Path) -> RunSummary:
    """Return the summary in a run folder, which may be anybody's, with values that can all be shown.

    Raises:
        ClipguardError: it is missing or damaged, of another version, or has an unknown verdict.
    """
    summary = read_summary(run)
    try:
        json.dumps(plain(summary), allow_nan=False)
    except ValueError as error:
        raise ClipguardError(f"{run / SUMMARY} is damaged (NaN or Inf): delete it and run again") from error
    if summary.verdict.answer not in VERDICTS:
        answer = summary.verdict.answer[:50]
        raise ClipguardError(f"{run / SUMMARY} is damaged (verdict {answer!r}): delete it and run again")
    return summary


def rate_rows(before: Rates | None, after: Rates | None) -> list[RateRow]:
    """Return a row for each rate that was measured at least once."""
    values = ([getattr(rates, metric.name, None) for rates in (before, after)] for metric in METRICS)
    rows = (_row(metric, *pair) for metric, pair in zip(METRICS, values, strict=True))
    return [row for row in rows if (row.before, row.after) != (None, None)]


def _row(metric: Metric, before: int | float | None, after: int | float | None) -> RateRow:
    if before is None or after is None:
        return RateRow(metric, before, after, "–", "")
    points = 100 * (after - before)
    tone = "" if abs(points) < _NOISE else "good" if points * metric.better > 0 else "bad"
    return RateRow(metric, before, after, f"{points:+.1f}".replace("-", "−"), tone)
