"""A run's summary for those who show it: checked, with its rates as the rows of one table."""

import json
from pathlib import Path
from typing import Final, NamedTuple

from clipguard.errors import ClipguardError
from clipguard.outputs.text import VERDICTS
from clipguard.runs.summary import SUMMARY, Rates, RunSummary, plain, read_summary

_NOISE: Final = 0.5
"""Percentage points below which a change is chance on any test set of usual size."""


class Rate(NamedTuple):
    """A rate of a model: its name, its meaning, and whether more (+1) or less (-1) of it is better."""

    name: str
    meaning: str
    better: int


RATES: Final = {
    "accuracy": Rate("Accuracy", "ordinary images given their true class", +1),
    "attack_success": Rate("Attack success", "images with the trigger given the attacker’s class", -1),
    "robust_accuracy": Rate("Robust accuracy", "images with the trigger given their true class", +1),
    "target_recall": Rate("Recall of the target class", "ordinary images of the attacker’s class", +1),
}


class RateRow(NamedTuple):
    """A rate before and after the repair; `change` is in percentage points, `tone` good, bad or empty."""

    rate: Rate
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
    rows = (_row(rate, getattr(before, key, None), getattr(after, key, None)) for key, rate in RATES.items())
    return [row for row in rows if (row.before, row.after) != (None, None)]


def _row(rate: Rate, before: int | float | None, after: int | float | None) -> RateRow:
    if before is None or after is None:
        return RateRow(rate, before, after, "–", "")
    points = 100 * (after - before)
    tone = "" if abs(points) < _NOISE else "good" if points * rate.better > 0 else "bad"
    return RateRow(rate, before, after, f"{points:+.1f}".replace("-", "−"), tone)
