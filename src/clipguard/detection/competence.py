"""Which classes the guide can read: how often it gives the given label, against how often by chance.

A class that the guide cannot read is not assessable: there, its word against a label says nothing.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy import special, stats

ALPHA: Final = 0.05
"""Probability that any of the classes is misjudged: the customary value."""

WEAK: Final = 0.5
"""Share of the probe's agreement with the labels below which the guide's is weak.

On development rows it is 0.75 on CIFAR-10, where a second axis changes nothing, and 0.47 on CIFAR-100."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassCompetence:
    """The guide's agreement with the given labels of each of k classes.

    Attributes:
        n: samples of the class.
        agreement: share of them that the guide calls so; 0 without a sample.
        low: lower end of the interval of that share; all k intervals hold together with 95 %.
        high: upper end.
        elsewhere: share of the samples of other classes that the guide calls so. That is chance: a guide that
            calls everything a cat agrees with all cats.
        assessable: whether the class is called so more often than the others, for certain.
    """

    n: Int64[np.ndarray, "k"]
    agreement: Float64[np.ndarray, "k"]
    low: Float64[np.ndarray, "k"]
    high: Float64[np.ndarray, "k"]
    elsewhere: Float64[np.ndarray, "k"]
    assessable: Bool[np.ndarray, "k"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuideComparison:
    """Two guides on the same samples, by class.

    Attributes:
        same: share of all samples that both call the same.
        first: share of the class with whose given label the first guide agrees; 0 without a sample.
        second: the same of the second guide.
        p_value: that the two shares differ by chance alone.
        differs: whether they differ, at 5 % over all classes together.
    """

    same: float
    first: Float64[np.ndarray, "k"]
    second: Float64[np.ndarray, "k"]
    p_value: Float64[np.ndarray, "k"]
    differs: Bool[np.ndarray, "k"]


def second_axis(
    labels: Int64[np.ndarray, "n"],
    guide_class: Int64[np.ndarray, "n"],
    probe_loss: Float64[np.ndarray, "n"],
    probe_class: Int64[np.ndarray, "n"],
) -> Float64[np.ndarray, "n"] | None:
    """Return the linear probe's losses where it reads the classes so much better that it counts, too.

    The probe learns the given labels, so that it believes poison which its embeddings betray, above all with
    kept labels. It is a second axis only where the guide alone is weak (`WEAK`).
    """
    guide, probe = (float(np.mean(classes == labels)) for classes in (guide_class, probe_class))
    return probe_loss if guide < WEAK * probe else None


def class_competence(
    labels: Int64[np.ndarray, "n"], guide_class: Int64[np.ndarray, "n"], num_classes: int
) -> ClassCompetence:
    """Return how well the guide reads each class.

    Both shares get exact limits (Clopper and Pearson, Biometrika 1934), each exceeded with probability
    `ALPHA` / 2k. A class is assessable if they are apart. By Bonferroni's inequality, a class that is called
    so no more often than the others is assessable in at most `ALPHA` of all data sets. A guide that takes two
    classes for each other still tells both from the rest, so that they are assessable.

    Args:
        labels: as given.
        guide_class: the class that the guide finds likeliest.
        num_classes: k, empty classes included.
    """
    k = num_classes
    n, named = np.bincount(labels, minlength=k), np.bincount(guide_class, minlength=k)
    agreeing = np.bincount(labels[labels == guide_class], minlength=k)
    others = len(labels) - n
    tail = ALPHA / (2 * k)
    low, high = lower_limit(agreeing, n, tail), upper_limit(agreeing, n, tail)
    return ClassCompetence(
        n=n,
        agreement=agreeing / np.maximum(n, 1),
        low=low,
        high=high,
        elsewhere=(named - agreeing) / np.maximum(others, 1),
        assessable=low > upper_limit(named - agreeing, others, tail),
    )


def compared_guides(
    labels: Int64[np.ndarray, "n"],
    first: Int64[np.ndarray, "n"],
    second: Int64[np.ndarray, "n"],
    num_classes: int,
) -> GuideComparison:
    """Return where two guides read the same samples differently well.

    Only samples that one of them calls as labelled and the other does not tell the two apart. If they are
    equally good, each of these is a fair coin (McNemar, Psychometrika 1947; exact, two-sided).

    Args:
        labels: as given.
        first: the class that one guide finds likeliest.
        second: the class that the other finds likeliest.
        num_classes: k, empty classes included.
    """
    agrees = first == labels, second == labels
    n, one, two, only_one, only_two = (
        np.bincount(labels[rows], minlength=num_classes)
        for rows in (slice(None), *agrees, agrees[0] & ~agrees[1], agrees[1] & ~agrees[0])
    )
    split = stats.binom.cdf(np.minimum(only_one, only_two), only_one + only_two, 0.5)
    p_value = np.minimum(1.0, 2 * split)
    return GuideComparison(
        same=float(np.mean(first == second)),
        first=one / np.maximum(n, 1),
        second=two / np.maximum(n, 1),
        p_value=p_value,
        differs=p_value <= ALPHA / num_classes,
    )


def lower_limit(
    hits: Int64[np.ndarray, "k"], n: Int64[np.ndarray, "k"], tail: float
) -> Float64[np.ndarray, "k"]:
    """Return the rate at which so many hits of n, or more, have probability `tail`; 0 without a hit."""
    limit: Float64[np.ndarray, k] = special.betaincinv(np.maximum(hits, 1), n - hits + 1, tail)
    return np.where(hits > 0, limit, 0.0)


def upper_limit(
    hits: Int64[np.ndarray, "k"], n: Int64[np.ndarray, "k"], tail: float
) -> Float64[np.ndarray, "k"]:
    """Return the rate at which so many hits of n, or fewer, have probability `tail`; 1 without a miss."""
    return 1 - lower_limit(n - hits, n, tail)
