"""Pixel axis of the verdict: how strong a hidden bias would have to be to make a class look so by chance.

The entropy map makes some samples candidates and trusts others. The trigger detector judges pixels alone, out
of fold. In a class without a trigger, what the detector finds is a candidate no more often than its content
makes likely. The null allows a hidden bias: the odds of being a candidate may be up to Gamma times those of
the content (sensitivity analysis; Rosenbaum 2002, *Observational Studies*, chapter 4). A class's strength is
the largest Gamma at which it is still rejected.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.optimize import brentq
from scipy.special import xlog1py, xlogy
from scipy.stats import binom, nbinom

LARGEST_STRENGTH: Final = 1e6
"""Where strengths end: beyond it, a class has nothing that the content would explain."""

LEAST_SHARE: Final = 0.01
"""Least share of candidates that a content is taken to have: few samples show none by chance."""


class Counts(NamedTuple):
    """Samples above the detector's threshold of one class, by content.

    Attributes:
        candidates: of the entropy map.
        trusted: by the entropy map.
        share: of candidates among all candidates and trusted samples with that content.
    """

    candidates: Int64[np.ndarray, "contents"]
    trusted: Int64[np.ndarray, "contents"]
    share: Float64[np.ndarray, "contents"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """What the entropy map says of every sample, and what the detector says beside it.

    Attributes:
        candidates: of the entropy map.
        trusted: by the entropy map.
        positive: above the detector's threshold.
        content: class that a sample shows, whatever its label.
        labels: as given.
        num_classes: k.
    """

    candidates: Bool[np.ndarray, "n"]
    trusted: Bool[np.ndarray, "n"]
    positive: Bool[np.ndarray, "n"]
    content: Int64[np.ndarray, "n"]
    labels: Int64[np.ndarray, "n"]
    num_classes: int


def counts_of(sides: Sides, label: int) -> Counts:
    """Return the counts of one class."""
    k = sides.num_classes
    members = sides.positive & (sides.labels == label)
    of_content = [np.bincount(sides.content[side], minlength=k) for side in (sides.candidates, sides.trusted)]
    candidates, trusted = (
        np.bincount(sides.content[side & members], minlength=k) for side in (sides.candidates, sides.trusted)
    )
    # One pseudo-sample of the overall share keeps a content with hardly any sample from a share of 0 or 1.
    overall = of_content[0].sum() / max(1, of_content[0].sum() + of_content[1].sum())
    share = (of_content[0] + overall) / (of_content[0] + of_content[1] + 1)
    return Counts(candidates, trusted, np.maximum(share, LEAST_SHARE))


def tail(counts: Counts, gamma: float) -> float:
    """Return P(at least as many candidates) where each has at most `gamma` times the odds of its content.

    The number of candidates is a sum of binomials, one a content; its distribution is their convolution.
    """
    odds = gamma * counts.share / (1 - counts.share)
    distribution = np.ones(1)
    for number, chance in zip(counts.candidates + counts.trusted, odds / (1 + odds), strict=True):
        if number:
            distribution = np.convolve(distribution, binom.pmf(np.arange(number + 1), number, chance))
    return float(min(1.0, distribution[counts.candidates.sum() :].sum()))


def strength(counts: Counts, alpha: float) -> float:
    """Return the largest Gamma at which the class is rejected at `alpha`; 0 where it is not even at odds of 0.

    The tail grows with Gamma, so that the largest one is a root.
    """

    def excess(log_gamma: float) -> float:
        return np.log(max(tail(counts, float(np.exp(log_gamma))), 1e-300)) - np.log(alpha)

    low, high = -np.log(LARGEST_STRENGTH), np.log(LARGEST_STRENGTH)
    if not counts.candidates.sum() or excess(low) > 0:
        return 0.0
    if excess(high) < 0:
        return LARGEST_STRENGTH
    return float(np.exp(brentq(excess, low, high, xtol=1e-3)))
