"""Which samples of a run are kept and which dropped, by status, q-value and review marks."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Shaped

from clipguard.errors import ClipguardError
from clipguard.outputs.samples import read_samples
from clipguard.runs import read_table
from clipguard.runs.reviews import Review, matched
from clipguard.runs.samples_table import SAMPLES

NEEDED: Final = ("row", "id", "sha256", "label", "given_label", "status", "reason", "q_value")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptSamples:
    """The samples of a run, and which of them are kept.

    Attributes:
        samples: the columns `NEEDED`, in the order of the table.
        kept: by row of the table.
        dropped: how many were dropped, by cause: flagged, set aside, q-value, review.
        rescued: how many review marks keep what would be dropped.
        strangers: how many review marks are of no sample here.
    """

    samples: dict[str, Shaped[np.ndarray, "n"]]
    kept: Bool[np.ndarray, "n"]
    dropped: dict[str, int]
    rescued: int
    strangers: int


def kept_samples(
    run: Path, *, set_aside: bool = False, q_value: float | None = None, reviews: Iterable[Review] = ()
) -> KeptSamples:
    """Return which samples are kept: by default all but the flagged ones; review marks have the last word.

    Args:
        run: the run folder.
        set_aside: drop what is set aside, too.
        q_value: drop, too, what has at most this q-value.
        reviews: decisions of people.

    Raises:
        ClipguardError: a run that is not finished, a damaged table, or a q-value outside 0 to 1.
    """
    if q_value is not None and not 0 <= q_value <= 1:
        raise ClipguardError(f"q-value {q_value:g}: give a number from 0 to 1, such as 0.1")
    read_samples(run, order="table")  # whether the table makes sense
    samples = read_table(run / SAMPLES, NEEDED)
    if missing := [name for name in NEEDED if name not in samples]:
        raise ClipguardError(f"{run / SAMPLES} lacks the column {missing[0]}: run again to write it")
    causes = _causes(samples, set_aside, q_value)
    marked, strangers = matched(samples, reviews)
    rescued = int(((marked == "keep") & (causes != "")).sum())
    causes = np.where(marked == "keep", "", causes)
    causes = np.where((marked == "drop") & (causes == ""), "review", causes)
    names, counts = np.unique(causes[causes != ""].astype(str), return_counts=True)
    return KeptSamples(
        samples=samples,
        kept=causes == "",
        dropped=dict(zip(names.tolist(), counts.tolist(), strict=True)),
        rescued=rescued,
        strangers=strangers,
    )


def _causes(samples: dict[str, Any], set_aside: bool, q_value: float | None) -> Shaped[np.ndarray, "n"]:
    """Return why each sample is dropped; empty where it is kept."""
    status = samples["status"]
    causes = np.where(status == "flagged", "flagged", "").astype(object)
    if set_aside:
        causes[(causes == "") & (status == "set aside")] = "set aside"
    if q_value is not None:
        causes[(causes == "") & (samples["q_value"] <= q_value)] = "q-value"
    return causes
