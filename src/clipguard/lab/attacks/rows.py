"""Rows that a helper net points at, and where samples stand among those that it was trained on."""

import numpy as np
from jaxtyping import Float, Int64

from clipguard.errors import ClipguardError
from clipguard.types import ImageSet


def check_target(target: int, data: ImageSet) -> None:
    """Refuse a target that is no class, before a helper net is trained for it.

    Raises:
        ClipguardError: there is no such class.
    """
    if not 0 <= target < len(data.class_names):
        last = len(data.class_names) - 1
        raise ClipguardError(f"target class {target} does not exist: choose one of 0 to {last}")


def places_of(data: ImageSet, ids: tuple[str, ...], labels: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "m"]:
    """Return the place of every sample of `data` among the `ids`, whose labels were `labels`.

    Raises:
        ClipguardError: a sample is not among them, or has another label: it is of another data set.
    """
    places = dict(zip(ids, range(len(ids)), strict=True))
    found = np.array([places.get(name, -1) for name in data.ids], dtype=np.int64)
    if len(found) and ((found < 0) | (labels[found] != data.labels)).any():
        raise ClipguardError("the attack was prepared for another data set: prepare it for this one")
    return found


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
