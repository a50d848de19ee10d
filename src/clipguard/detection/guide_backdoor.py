"""Signs that a guide itself carries a backdoor: a class that a small pattern reaches, or that gains images.

Neither proves a backdoor. A class may be easy to reach, or a guide may like it, for ordinary reasons.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy import stats

from clipguard.detection.competence import ALPHA, lower_limit, upper_limit

FEWEST_CLASSES: Final = 5
"""Classes below which a median of their rates says little."""

MAD_TO_DEVIATION: Final = 1.4826
"""Of a normal distribution: its standard deviation over its median absolute deviation."""

LEAST_DEVIATION: Final = 0.05
"""Of the rates: where no pattern reaches anything, the deviation is near 0, and any rate far out."""

FAR_OUT: Final = 3.5
"""Deviations above the median from which a rate is an outlier (Iglewicz and Hoaglin 1993).

Neural Cleanse has 2, by which one of 20 clean guides of ten classes shows an outlier or more."""

MOST_OF_THEM: Final = 0.5
"""Share of the images that the pattern of a class that stands out reaches, at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """What two guides find likeliest in the same images, by class.

    Attributes:
        share: of the images labelled so that the two call differently; 0 without an image.
        low: lower end of its interval; all k intervals hold together with 95 %.
        high: upper end.
        first_only: images that the first guide calls so and the second does not.
        second_only: the other way round.
        p_value: that the first count is so much the larger by chance alone.
        gains: whether it is larger, at 5 % over all classes together.
    """

    share: Float64[np.ndarray, "k"]
    low: Float64[np.ndarray, "k"]
    high: Float64[np.ndarray, "k"]
    first_only: Int64[np.ndarray, "k"]
    second_only: Int64[np.ndarray, "k"]
    p_value: Float64[np.ndarray, "k"]
    gains: Bool[np.ndarray, "k"]


def disagreement(
    labels: Int64[np.ndarray, "n"],
    first: Int64[np.ndarray, "n"],
    second: Int64[np.ndarray, "n"],
    num_classes: int,
) -> Disagreement:
    """Return where two guides differ, and towards which classes the first one moves more images.

    If both guides are alike, an image that one of them alone calls so is a fair coin (McNemar, Psychometrika
    1947; exact, one-sided). P-values are adjusted by Holm (Scand. J. Stat. 1979). The intervals are those of
    Clopper and Pearson.

    Args:
        labels: as given.
        first: the class that the first guide finds likeliest.
        second: the class that the second finds likeliest.
        num_classes: k, empty classes included.
    """
    k, apart = num_classes, first != second
    n, differing = np.bincount(labels, minlength=k), np.bincount(labels[apart], minlength=k)
    first_only, second_only = (np.bincount(classes[apart], minlength=k) for classes in (first, second))
    p_value = stats.binom.sf(first_only - 1, first_only + second_only, 0.5)
    adjusted = _holm(p_value)
    tail = ALPHA / (2 * k)
    return Disagreement(
        share=differing / np.maximum(n, 1),
        low=lower_limit(differing, n, tail),
        high=upper_limit(differing, n, tail),
        first_only=first_only,
        second_only=second_only,
        p_value=adjusted,
        gains=adjusted <= ALPHA,
    )


def _holm(p_value: Float64[np.ndarray, "k"]) -> Float64[np.ndarray, "k"]:
    """Return the p-values, adjusted so that any is below 5 % by chance with probability 5 % at most."""
    order = np.argsort(p_value)
    stepped = np.maximum.accumulate(p_value[order] * np.arange(len(order), 0, -1))
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def deviations(reached: Float64[np.ndarray, "k"]) -> Float64[np.ndarray, "k"]:
    """Return how many deviations each rate lies above the median, by the median absolute deviation."""
    middle = np.median(reached)
    spread = MAD_TO_DEVIATION * np.median(np.abs(reached - middle))
    return np.asarray((reached - middle) / max(spread, LEAST_DEVIATION), np.float64)


def outliers(reached: Float64[np.ndarray, "k"]) -> Bool[np.ndarray, "k"]:
    """Return which classes a small pattern reaches much more easily than the others.

    Args:
        reached: share of the images of other classes that the class's pattern moves to it.
    """
    return np.asarray((deviations(reached) > FAR_OUT) & (reached >= MOST_OF_THEM), bool)
