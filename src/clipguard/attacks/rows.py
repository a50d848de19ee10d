"""Rows that a helper net points at, and whether it may: its opinions belong to one data set."""

import numpy as np
from jaxtyping import Float, Int64

from clipguard.errors import ClipguardError
from clipguard.types import ImageSet


def check_prepared_for(fingerprint: str, data: ImageSet) -> None:
    """Refuse data other than that on which the attack's helper was trained.

    Raises:
        ClipguardError: it is other data.
    """
    if data.fingerprint != fingerprint:
        raise ClipguardError("the attack was prepared for another data set: prepare it for this one")


def highest(scores: Float[np.ndarray, "n"], rate: float) -> Int64[np.ndarray, "p"]:
    """Return the round(rate n) rows of the highest scores, ascending; -inf marks rows that cannot be taken.

    Raises:
        ClipguardError: there are fewer candidates than that.
    """
    n = len(scores)
    count, candidates = round(rate * n), int(np.isfinite(scores).sum())
    if count > candidates:
        raise ClipguardError(
            f"poison rate {rate} asks for {count} of {n} samples but only {candidates} can carry it: "
            "lower the rate or choose another target class"
        )
    # Stable, so that ties do not depend on numpy's sorting network.
    return np.sort(np.argsort(-scores, kind="stable")[:count])
