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
from scipy.stats import binom, nbinom

LARGEST_STRENGTH: Final = 1e6
"""Where strengths end: beyond it, a class has nothing that the content would explain."""

LEAST_SHARE: Final = 0.01
"""Least share of candidates that a content is taken to have: few samples show none by chance."""

NATURAL: Final = 2.0
"""Largest odds ratio of a class without a trigger on development draws, rounded up."""


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


def content_shares(sides: Sides) -> Float64[np.ndarray, "k"]:
    """Return the share of candidates among candidates and trusted samples of each content.

    One pseudo-sample of the overall share keeps a content with hardly any sample from an extreme share.
    """
    candidates, trusted = (
        np.bincount(sides.content[side], minlength=sides.num_classes)
        for side in (sides.candidates, sides.trusted)
    )
    # One more trusted sample keeps it from 1 where nothing is trusted.
    overall = candidates.sum() / (candidates.sum() + trusted.sum() + 1)
    return np.asarray(np.maximum((candidates + overall) / (candidates + trusted + 1), LEAST_SHARE))


def class_counts(sides: Sides) -> dict[int, Counts]:
    """Return the counts of every class that has candidates above the detector's threshold."""
    share, counts = content_shares(sides), {}
    rows = np.flatnonzero(sides.positive & (sides.candidates | sides.trusted))
    labels, content, candidate = sides.labels[rows], sides.content[rows], sides.candidates[rows]
    for label in np.unique(labels[candidate]).tolist():
        inside = labels == label
        of_candidates, of_trusted = (
            np.bincount(content[inside & side], minlength=sides.num_classes)
            for side in (candidate, ~candidate)
        )
        counts[label] = Counts(of_candidates, of_trusted, share)
    return counts


def class_strengths(sides: Sides, alpha: float) -> Float64[np.ndarray, "k"]:
    """Return the strength of every class, with `alpha` split among those that have samples."""
    several = max(1, len(np.unique(sides.labels)))
    strengths = np.zeros(sides.num_classes)
    for label, counts in class_counts(sides).items():
        strengths[label] = strength(counts, alpha / several)
    return strengths


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
    """Return the largest Gamma at which the class is rejected at `alpha`, to 0.1 %; 0 where it never is.

    It is a root, since the tail grows with Gamma.
    """

    def excess(log_gamma: float) -> float:
        return float(np.log(max(tail(counts, float(np.exp(log_gamma))), 1e-300)) - np.log(alpha))

    low, high = -np.log(LARGEST_STRENGTH), np.log(LARGEST_STRENGTH)
    if excess(low) > 0:
        return 0.0
    if excess(high) < 0:
        return LARGEST_STRENGTH
    return float(np.exp(brentq(excess, low, high, xtol=1e-3)))


def at_least(sides: Sides, alpha: float) -> Int64[np.ndarray, "k"]:
    """Return a lower bound of the triggered candidates of every class, simultaneous at `alpha`.

    Trusted samples above the threshold compete with candidates (knockoffs): given their number, that of
    candidates without a trigger is at most a negative binomial count (Janson and Su 2016, *Electronic Journal
    of Statistics* 10). A sample without a trigger may be a candidate at up to `NATURAL` times the odds of the
    candidates' contents or those of the trusted ones, whichever are larger.
    """
    several = max(1, len(np.unique(sides.labels)))
    bounds = np.zeros(sides.num_classes, dtype=np.int64)
    for label, counts in class_counts(sides).items():
        candidates = int(counts.candidates.sum())
        odds = _natural_odds(counts)
        innocent = nbinom.isf(alpha / several, counts.trusted.sum() + 1, 1 / (1 + odds))
        bounds[label] = max(0, candidates - int(innocent))
    return bounds


def false_shares(sides: Sides, score: Float64[np.ndarray, "n"]) -> Float64[np.ndarray, "n"]:
    """Return, of each sample, the estimated share without a trigger among its class from its score on.

    It never falls with a falling score: a q-value (Storey 2002). Trusted samples count those without a
    trigger: as many candidates come with them as `NATURAL` allows, and uncertain samples as elsewhere. One
    trusted sample is added to those that there are (knockoff+; Barber and Candes 2015). 1 in classes without
    candidates above the detector's threshold.
    """
    shares = np.ones(len(score))
    trusted = int(sides.trusted.sum())
    uncertain = (len(score) - trusted - int(sides.candidates.sum())) / max(1, trusted)
    for label, counts in class_counts(sides).items():
        rows = np.flatnonzero(sides.labels == label)
        order = rows[np.argsort(-score[rows], kind="stable")]
        # Samples of the same score share the counts of the last of them.
        last = np.searchsorted(-score[order], -score[order], side="right") - 1
        innocent = (np.cumsum(sides.trusted[order])[last] + 1) * (1 + _natural_odds(counts) + uncertain)
        ratio = innocent / (last + 1)
        shares[order] = np.minimum(1.0, np.minimum.accumulate(ratio[::-1])[::-1])
    return shares


def _natural_odds(counts: Counts) -> float:
    """Return the largest odds of being a candidate without a trigger, see `at_least`.

    Samples with a trigger dilute the contents of the candidates, not those of the trusted ones. The odds of
    all trusted ones sum up to the candidates without a trigger that come with them.
    """
    share = float(np.average(counts.share, weights=counts.candidates))
    odds = counts.share / (1 - counts.share)
    of_trusted = float(counts.trusted @ odds) / max(1, int(counts.trusted.sum()))
    return NATURAL * max(share / (1 - share), of_trusted)
