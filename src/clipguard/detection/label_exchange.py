"""Label exchange: which classes hold more labels of surely other content than confusion and noise give.

The null hypothesis: each label is drawn from the probe's recalibrated out-of-fold posterior with symmetric
noise, and no expected count is too small by more than a factor of `MARGIN`. A parametric bootstrap redraws
the counts; the most extreme class of each redraw adjusts for their number (max-T; Westfall and Young 1993).

Honest confusion that goes deep into a class, one way, cannot be told from poison by labels: show the pair.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped
from scipy.stats import chi2, poisson

from clipguard.detection.certain_labels import CertainLabels
from clipguard.seeds import Seed

MARGIN: Final = 2.0
"""Factor by which expected counts may be too small without an alarm.

The posterior is no exact null, and more samples reject it more surely. Of 41 unpoisoned draws of 10,000 to
31,000 CIFAR-10 rows, 6 are rejected at 0.0125 with a factor of 1.25, 2 with 1.5 and none with 2. Many of
these draws share images. The price: of 10 draws with 1 % of labels flipped to one class, 8 are rejected
with 2, and all with 1.25.
"""

LEVEL: Final = 0.01
"""Level of `LabelExchange.strength`, over all classes and pairs together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelExchange:
    """What label exchange says of each class as a target.

    Attributes:
        p_value: adjusted over all classes.
        tail: the test statistic: the smallest chance of so many labels, from one class, from all others, or
            from the half of them that are least confused with it; that of a pair times k - 1.
        source: the class that most of the surprise comes from; -1 where nothing does.
        one_source: whether that pair is more surprising than the sums over classes.
        strength: the largest factor by which expected counts could be too small and the class still stand out
            at `LEVEL`: lower Poisson limits (Garwood 1936) under Bonferroni's adjustment; 0 if nothing does.
        excess: certain labels of others beyond `MARGIN` times the expected ones, where they are most.
        wrong_labels: estimated number of labels of the class that belong to others, beyond expected ones. It
            is no bound: of poison from one class, the probe has learned a part and expects it.
    """

    p_value: Float64[np.ndarray, "k"]
    tail: Float64[np.ndarray, "k"]
    source: Int64[np.ndarray, "k"]
    one_source: Bool[np.ndarray, "k"]
    strength: Float64[np.ndarray, "k"]
    excess: Float64[np.ndarray, "k"]
    wrong_labels: Float64[np.ndarray, "k"]


@dataclass(frozen=True, slots=True)
class _Counts:
    """Labels at one depth, in a band or deeper: the pairs k a + b that have any, and how many."""

    pair: Int64[np.ndarray, "m"]
    count: Int64[np.ndarray, "m"]


class _Null(NamedTuple):
    """Largest expected labels at one depth under the null hypothesis, times `MARGIN`.

    `groups` sum them up over all other classes, and over those that a is confused with least: `far`.
    """

    pairs: Float64[np.ndarray, "k k"]
    groups: Float64[np.ndarray, "2 k"]
    far: Bool[np.ndarray, "k k"]


def label_exchange(labels: CertainLabels, seed: Seed, redraws: int = 999) -> LabelExchange:
    """Return what label exchange says of each class, with p-values of at least 1 / (redraws + 1)."""
    nulls = [_null(labels, depth) for depth in range(len(labels.expected))]
    shape, pairs = labels.observed.shape, np.flatnonzero(labels.observed)
    given = _by_depth(pairs, labels.observed.ravel()[pairs], shape)
    one_source, sums = _tails(given, nulls)
    tail = np.minimum(one_source, sums)
    extreme = np.sort(_extremes(labels, nulls, redraws, seed))
    return LabelExchange(
        p_value=(1 + np.searchsorted(extreme, tail, side="right")) / (1 + redraws),
        tail=tail,
        source=_sources(given, nulls),
        one_source=one_source < sums,
        strength=_strength(given, nulls),
        excess=_excess(given, nulls),
        wrong_labels=_wrong_labels(labels),
    )


def _null(labels: CertainLabels, depth: int) -> _Null:
    """Return the null hypothesis at a depth."""
    expected, k = MARGIN * labels.expected[depth:].sum(0), labels.expected.shape[1]
    rate = expected / np.maximum(labels.samples[depth:].sum(0), 1)
    np.fill_diagonal(rate, np.inf)
    place = rate.argsort(axis=1, kind="stable").argsort(axis=1)
    far = place < max(1, (k - 1) // 2)
    return _Null(expected, np.stack((expected.sum(1), (expected * far).sum(1))), far)


def _by_depth(
    cell: Int64[np.ndarray, "m"], count: Int64[np.ndarray, "m"], shape: tuple[int, ...]
) -> list[_Counts]:
    """Return the counts at each depth from those of cells, numbered through bands and pairs."""
    bands, k, _ = shape
    band, pair = np.divmod(cell, k * k)
    depths = []
    for depth in range(bands):
        pairs, inverse = np.unique(pair[band >= depth], return_inverse=True)
        depths.append(_Counts(pairs, np.bincount(inverse, count[band >= depth], len(pairs)).astype(np.int64)))
    return depths


def _groups(counts: _Counts, null: _Null) -> Float64[np.ndarray, "2 k"]:
    """Return the labels of each class from all other classes, and from those far from it."""
    k = len(null.pairs)
    target, far = counts.pair // k, null.far.ravel()[counts.pair]
    # In double precision even where there are none.
    weights = counts.count.astype(np.float64), counts.count * far
    return np.stack([np.bincount(target, weight, k).astype(np.float64) for weight in weights])


def _tails(
    depths: list[_Counts], nulls: list[_Null]
) -> tuple[Float64[np.ndarray, "k"], Float64[np.ndarray, "k"]]:
    """Return the smallest chance of so many labels from one class, times k - 1, and from groups."""
    k = len(nulls[0].pairs)
    one_source, sums = np.full(k, np.inf), np.full(k, np.inf)
    for counts, null in zip(depths, nulls, strict=True):
        # sf(x - 1) is the chance of x or more.
        chance = poisson.sf(counts.count - 1, null.pairs.ravel()[counts.pair])
        np.minimum.at(one_source, counts.pair // k, (k - 1) * chance)
        sums = np.minimum(sums, poisson.sf(_groups(counts, null) - 1, null.groups).min(0))
    return one_source, sums


def _extremes(
    labels: CertainLabels, nulls: list[_Null], redraws: int, seed: Seed
) -> Float64[np.ndarray, "redraws"]:
    """Return the smallest statistic of any class in each redraw.

    Sums of many improbable labels are Poisson counts. Their total is drawn first, then the cell of each, so
    that a redraw takes time by labels, not by pairs of classes.
    """
    bound = np.cumsum(MARGIN * labels.expected)
    draw, extremes = seed.generator(), np.full(redraws, np.inf)
    for number in range(redraws):
        places = draw.random(draw.poisson(bound[-1])) * bound[-1]
        cells, count = np.unique(np.searchsorted(bound, places, side="right"), return_counts=True)
        extremes[number] = np.min(_tails(_by_depth(cells, count, labels.expected.shape), nulls))
    return extremes


def _sources(depths: list[_Counts], nulls: list[_Null]) -> Int64[np.ndarray, "k"]:
    """Return the class that each class has the most surprising number of labels from; -1 without any."""
    k = len(nulls[0].pairs)
    least, source = np.full(k, np.inf), np.full(k, -1)
    for counts, null in zip(depths, nulls, strict=True):
        # Logarithms tell chances apart that are 0 in double precision.
        chance = poisson.logsf(counts.count - 1, null.pairs.ravel()[counts.pair])
        for one, pair in zip(chance, counts.pair, strict=True):
            if one < least[pair // k]:
                least[pair // k], source[pair // k] = one, pair % k
    return source


def _strength(depths: list[_Counts], nulls: list[_Null]) -> Float64[np.ndarray, "k"]:
    """Return the largest factor of the unmultiplied expected counts at which each class still stands out."""
    k, tests = len(nulls[0].pairs), 3 * len(nulls)
    strength = np.zeros(k)
    for counts, null in zip(depths, nulls, strict=True):
        ratio = _lower_limit(counts.count, LEVEL / (tests * k * (k - 1))) / null.pairs.ravel()[counts.pair]
        np.maximum.at(strength, counts.pair // k, MARGIN * ratio)
        sums = _lower_limit(_groups(counts, null), LEVEL / (tests * k))
        strength = np.maximum(strength, (MARGIN * sums / np.maximum(null.groups, 1e-300)).max(0))
    return strength


def _excess(depths: list[_Counts], nulls: list[_Null]) -> Float64[np.ndarray, "k"]:
    """Return the most labels beyond those that the null hypothesis expects, of any class or group of them."""
    excess = np.zeros(len(nulls[0].pairs))
    for counts, null in zip(depths, nulls, strict=True):
        # A group with no label at all would be below 0.
        excess = np.maximum(excess, (_groups(counts, null) - null.groups).max(0))
        np.maximum.at(excess, counts.pair // len(excess), counts.count - null.pairs.ravel()[counts.pair])
    return excess


def _lower_limit(count: Shaped[np.ndarray, "..."], level: float) -> Float64[np.ndarray, "..."]:
    """Return the smallest mean under which a Poisson count of so many or more has at least that chance."""
    return np.asarray(np.where(count > 0, chi2.ppf(level, 2 * np.maximum(count, 1)) / 2, 0.0))


def _wrong_labels(labels: CertainLabels) -> Float64[np.ndarray, "k"]:
    """Return the labels of each class beyond the expected ones, as if certain ones stood for all of a class.

    A wrong label is as often certain as any other label of its true class.
    """
    beyond = (labels.observed - labels.expected).sum(0) / np.maximum(labels.own_share, 1e-9)
    return np.asarray(np.maximum(np.where(labels.own_share > 0, beyond, 0.0).sum(1), 0.0))
