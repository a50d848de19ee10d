"""Which samples an attack poisons: drawn at random or by a score, and found again in a part of the data."""

import numpy as np
from jaxtyping import Float

from clipguard.errors import ClipguardError
from clipguard.lab.attacks.protocol import Rows
from clipguard.seeds import Seed
from clipguard.types import ImageSet


def choose(candidates: Rows, rate: float, n: int, seed: Seed, kind: str = "poison") -> Rows:
    """Return round(rate n) rows drawn from `candidates` without replacement, ascending.

    Args:
        candidates: rows that can be changed.
        rate: fraction of all samples, not of the candidates.
        n: number of all samples.
        seed: of this choice alone.
        kind: what the rows are for, in an error.

    Raises:
        ClipguardError: there are fewer candidates than that.
    """
    count = count_of(rate, n, len(candidates), kind)
    return np.sort(seed.child("rows").generator().choice(candidates, count, replace=False))


def choose_cover(poisoned: Rows, n: int, ratio: float, seed: Seed) -> Rows:
    """Return round(ratio p) of n rows as cover for p poisoned ones, none of these, ascending.

    Raises:
        ClipguardError: too few rows are left.
    """
    left, share = np.setdiff1d(np.arange(n), poisoned), ratio * len(poisoned) / max(1, n)
    return choose(left, share, n, seed.child("cover"), "cover")


def other_rows(rows: Rows, n: int, seed: Seed) -> Rows:
    """Return another one of n rows for each of the given ones, at random."""
    # The shift is never 0.
    return (rows + seed.child("others").generator().integers(1, max(2, n), len(rows))) % max(1, n)


def highest(scores: Float[np.ndarray, "n"], rate: float) -> Rows:
    """Return the round(rate n) rows of the highest scores, ascending; -inf marks rows that cannot be taken.

    Raises:
        ClipguardError: there are fewer candidates than that.
    """
    count = count_of(rate, len(scores), int(np.isfinite(scores).sum()))
    # Stable, so that ties do not depend on numpy's sorting network.
    return np.sort(np.argsort(-scores, kind="stable")[:count])


def count_of(rate: float, n: int, candidates: int, kind: str = "poison") -> int:
    """Return round(rate n).

    Raises:
        ClipguardError: there are fewer candidates than that.
    """
    count = round(rate * n)
    if count > candidates:
        raise ClipguardError(
            f"{kind} rate {rate:g} asks for {count} of {n} samples but only {candidates} can carry it: "
            "lower the rate or choose another target class"
        )
    return count


def places_of(data: ImageSet, fitted_to: ImageSet) -> Rows:
    """Return the row of every sample of `data` in the set that an attack was fitted to.

    Raises:
        ClipguardError: a sample is not in it, or has another label: it is of another data set.
    """
    index = {name: row for row, name in enumerate(fitted_to.ids)}
    places = np.array([index.get(name, -1) for name in data.ids], dtype=np.int64)
    if len(places) and ((places < 0) | (fitted_to.labels[places] != data.labels)).any():
        raise ClipguardError("the attack was fitted to another data set: fit it to this one")
    return places
