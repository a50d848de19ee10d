"""Which samples an attack poisons: drawn at random or by a score, and found again in a part of the data."""

import numpy as np
from jaxtyping import Float, Int64

from clipguard.errors import ClipguardError
from clipguard.seeds import Seed
from clipguard.types import ImageSet


def choose(
    candidates: Int64[np.ndarray, "m"], rate: float, n: int, seed: Seed, kind: str = "poison"
) -> Int64[np.ndarray, "p"]:
    """Return round(rate n) rows drawn from `candidates` without replacement, ascending.

    Args:
        candidates: rows that can be changed.
        rate: fraction of all samples, not of the candidates.
        n: number of all samples.
        seed: of this choice alone; give cover samples a child of their own.
        kind: what the rows are for, in an error.

    Raises:
        ClipguardError: there are fewer candidates than that.
    """
    count = _count(rate, n, len(candidates), kind)
    return np.sort(seed.child("rows").numpy().choice(candidates, count, replace=False))


def choose_of_class(data: ImageSet, label: int, rate: float, seed: Seed) -> Int64[np.ndarray, "p"]:
    """Return round(rate n) rows of one class, ascending; the rate counts over all n samples.

    Raises:
        ClipguardError: the class has fewer samples than that.
    """
    return choose(np.flatnonzero(data.labels == label), rate, len(data), seed)


def choose_both(
    n: int, rate: float, ratio: float, seed: Seed
) -> tuple[Int64[np.ndarray, "p"], Int64[np.ndarray, "c"]]:
    """Return round(rate n) of the n rows to poison and round(ratio p) others as cover, both ascending.

    Raises:
        ClipguardError: together they are more than n.
    """
    rows = choose(np.arange(n), rate, n, seed)
    share = ratio * len(rows) / max(1, n)
    return rows, choose(np.setdiff1d(np.arange(n), rows), share, n, seed.child("cover"), "cover")


def highest(scores: Float[np.ndarray, "n"], rate: float) -> Int64[np.ndarray, "p"]:
    """Return the round(rate n) rows of the highest scores, ascending; -inf marks rows that cannot be taken.

    Raises:
        ClipguardError: there are fewer candidates than that.
    """
    count = _count(rate, len(scores), int(np.isfinite(scores).sum()), "poison")
    # Stable, so that ties do not depend on numpy's sorting network.
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def _count(rate: float, n: int, candidates: int, kind: str) -> int:
    count = round(rate * n)
    if count > candidates:
        raise ClipguardError(
            f"{kind} rate {rate:g} asks for {count} of {n} samples but only {candidates} can carry it: "
            "lower the rate or choose another target class"
        )
    return count


def places_of(data: ImageSet, ids: tuple[str, ...], labels: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "m"]:
    """Return the place of every sample of `data` among the `ids`, whose labels were `labels`.

    Raises:
        ClipguardError: a sample is not among them, or has another label: it is of another data set.
    """
    index = dict(zip(ids, range(len(ids)), strict=True))
    places = np.array([index.get(name, -1) for name in data.ids], dtype=np.int64)
    if len(places) and ((places < 0) | (labels[places] != data.labels)).any():
        raise ClipguardError("the attack was fitted to another data set: fit it to this one")
    return places
