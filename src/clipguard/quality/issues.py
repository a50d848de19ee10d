"""What can be wrong with a sample without anybody's intent, and the rows of quality.parquet."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

NO_OTHER: Final = -1
"""In place of another sample's row, where an issue concerns one sample alone."""


class IssueKind(NamedTuple):
    """How an issue is called, and what its score says; all scores lie in 0 to 1, higher is clearer."""

    title: str
    meaning: str
    score: str


ISSUES: Final = {
    "exact_duplicate_other_label": IssueKind(
        "exact duplicates under another label", "the same bytes as an earlier sample of another label", "1"
    ),
    "exact_duplicate": IssueKind(
        "exact duplicates", "the same bytes as an earlier sample of the same label", "1"
    ),
    "near_duplicate_other_label": IssueKind(
        "near duplicates under another label",
        "nearly the same picture as an earlier sample of another label",
        "correlation of the edges of both pictures",
    ),
    "near_duplicate": IssueKind(
        "near duplicates",
        "nearly the same picture as an earlier sample of the same label",
        "correlation of the edges of both pictures",
    ),
    "label_error": IssueKind(
        "label errors", "the label is more probably wrong than right", "probability that the label is wrong"
    ),
    "blank": IssueKind("blank images", "nearly one brightness everywhere", "1 - range of brightness"),
    "dark": IssueKind("dark images", "even its bright parts are dark", "1 - brightness of bright parts"),
    "bright": IssueKind("bright images", "even its dark parts are white", "brightness of dark parts"),
    "odd_aspect_ratio": IssueKind(
        "odd aspect ratios",
        "much wider or taller than most images here",
        "1 - ratio to the median aspect ratio, or its inverse",
    ),
    "odd_size": IssueKind(
        "odd sizes",
        "much larger or smaller than most images here",
        "1 - ratio of the side to the median side, or its inverse",
    ),
    "outlier": IssueKind(
        "outliers",
        "unlike the other images here",
        "1 - median distance from the other images / its own distance",
    ),
}
"""All issues, those that matter most first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issues:
    """m samples with one issue.

    Attributes:
        kind: one of `ISSUES`.
        rows: of the samples.
        others: row of the sample that each of them duplicates; `NO_OTHER` for other issues.
        score: in 0 to 1.
        labels: class that the sample seems to show; `NO_OTHER` for issues that say nothing of it.
    """

    kind: str
    rows: Int64[np.ndarray, "m"]
    others: Int64[np.ndarray, "m"]
    score: Float64[np.ndarray, "m"]
    labels: Int64[np.ndarray, "m"]


def issues(  # the arrays are described above
    kind: str,
    rows: Int64[np.ndarray, "m"],
    score: Float64[np.ndarray, "m"],
    others: Int64[np.ndarray, "m"] | None = None,
    labels: Int64[np.ndarray, "m"] | None = None,
) -> Issues:
    """Return samples with one issue; what is not given does not apply to it."""
    nothing = np.full(len(rows), NO_OTHER)
    return Issues(
        kind=kind,
        rows=rows,
        others=nothing if others is None else others,
        score=np.clip(np.asarray(score, np.float64), 0.0, 1.0),
        labels=nothing if labels is None else labels,
    )


def by_clarity(several: Iterable[Issues]) -> list[Issues]:
    """Return the issues in the order of `ISSUES`, the clearest samples of each first, ties by row."""
    order = list(ISSUES)
    ranked = []
    for one in sorted(several, key=lambda one: order.index(one.kind)):
        places = np.lexsort((one.rows, -one.score))
        ranked.append(
            Issues(
                kind=one.kind,
                rows=one.rows[places],
                others=one.others[places],
                score=one.score[places],
                labels=one.labels[places],
            )
        )
    return ranked
