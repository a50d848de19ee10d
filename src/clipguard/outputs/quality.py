"""Data quality for those who show it: quality.parquet, which may be anybody's, and the counts in words."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Shaped

from clipguard.errors import ClipguardError
from clipguard.quality.issues import ISSUES, NO_OTHER
from clipguard.runs import read_rows, read_table
from clipguard.runs.summary import QualitySummary

QUALITY: Final = "quality.parquet"

LISTED: Final = 20
"""How many samples of an issue are listed."""

_TEXTS: Final = ("id", "given_label", "other_id", "other_label", "words")
_NUMBERS: Final = {"row": "iu", "other_row": "iu", "score": "f"}


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityIssue:
    """A sample with an issue; all texts come from the data, and may hold anything.

    Attributes:
        kind: one of `clipguard.quality.issues.ISSUES`, which has titles and meanings.
        row: of the sample in the source as listed, from 0.
        id: of the sample.
        given_label: name of its class.
        other_row: of the sample that it duplicates; None for other issues.
        other_id: of the same; empty for other issues.
        other_label: class of the same, or the one that a sample with a label error seems to show; or empty.
        score: in 0 to 1, higher is clearer; comparable among samples with the same issue.
        words: what is wrong, in a clause.
    """

    kind: str
    row: int
    id: str
    given_label: str
    other_row: int | None
    other_id: str
    other_label: str
    score: float
    words: str


def read_quality(run: Path, listed: int = LISTED) -> dict[str, list[QualityIssue]]:
    """Return the clearest samples with each issue of a run, at most `listed` of each; nothing without any.

    Raises:
        ClipguardError: the file is missing, lacks a column, or holds values that make no sense.
    """
    path = run / QUALITY
    if not path.is_file():
        raise ClipguardError(f"run folder {run} has no {QUALITY}: scan again with data quality")
    kinds = _kinds(path)
    places = [np.flatnonzero(kinds == kind)[:listed] for kind in ISSUES]
    rows = np.concatenate(places)
    columns = read_rows(path, rows, (*_TEXTS, *_NUMBERS))
    if missing := {*_TEXTS, *_NUMBERS} - columns.keys():
        raise _damaged(path, sorted(missing)[0])
    for name, values in columns.items():
        if not all(_fits(name, value) for value in values):
            raise _damaged(path, name)
    every = [
        QualityIssue(
            kind=str(kinds[row]),
            row=columns["row"][place],
            other_row=None if columns["other_row"][place] == NO_OTHER else columns["other_row"][place],
            score=columns["score"][place],
            **{name: columns[name][place] for name in _TEXTS},
        )
        for place, row in enumerate(rows.tolist())
    ]
    return {kind: issues for kind in ISSUES if (issues := [one for one in every if one.kind == kind])}


def quality_words(quality: QualitySummary) -> list[str]:
    """Return the counts of each issue, and what was not looked for, a few words each."""
    known = [f"{ISSUES[kind].title}: {quality.counts[kind]:,}" for kind in ISSUES if kind in quality.counts]
    return [*(known or ["no issue"]), *quality.limits]


def _kinds(path: Path) -> Shaped[np.ndarray, "m"]:
    columns = read_table(path, ("issue",))
    if "issue" not in columns or not {str(kind) for kind in np.unique(columns["issue"])} <= ISSUES.keys():
        raise _damaged(path, "issue")
    return columns["issue"]


def _fits(name: str, value: object) -> bool:
    """Return whether a value makes sense in its column."""
    if name in _TEXTS:
        return isinstance(value, str)
    if name == "score":
        return isinstance(value, float) and 0 <= value <= 1
    return isinstance(value, int) and value >= NO_OTHER


def _damaged(path: Path, column: str) -> ClipguardError:
    return ClipguardError(
        f"{path} lacks the column {column}, or it is damaged: delete the file and run again"
    )
