"""One-way labels: is the label of one class as frequent deep inside another as near the border of both?

Honest confusion of two classes fades with the distance from their border, and is much alike in both
directions. Labels that were changed from one class to another lie anywhere in the first, and come back
nowhere. A linear probe that has learned from such labels expects them, so that label exchange misses many of
one class. But it still sorts the samples by depth: a mean that is mixed with another one lies on the same
line. So only the order by depth counts here, and no probability.

The null hypothesis of a pair: in the deeper half of the source, the odds of the target's label are at most
`ODDS`, times as much as the target's content is larger, or twice what the other direction lets expect, and
symmetric noise beside. If nobody can tell two classes apart, the odds are r in one direction and 1 / r in the
other, where r is how many times as large the target is: hence r squared. The test is the exact binomial one,
adjusted for all pairs by Bonferroni. The statistic is this project's: docs/experiments.md, 25.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float64, Int64
from scipy.stats import binom

from clipguard.detection.drawn_rows import MOST_ROWS, drawn_by_class
from clipguard.detection.linear_probe import FittedProbe
from clipguard.seeds import Seed
from clipguard.types import Rows, chunks

ODDS: Final = 1 / 9
"""Odds of another class's label deep inside a class, without an alarm: one in ten of both.

Of dogs among cats, the most confused classes of CIFAR-10 for the guide `mini`, the share is 0.05 to 0.19 in
3,000 samples, and 0.07 to 0.09 in 10,000.
"""

MARGIN: Final = 2.0
"""Times the odds that the other direction lets expect, without an alarm."""

LARGEST_RATIO: Final = 4.0
"""Times as many samples as the source that a target may have, of those whose label the probe finds likeliest.

A few of many lie anywhere: of a rare class, most of the content may be theirs.
"""

FEWEST: Final = 5
"""Labels of a target in a source below which the pair is not looked at."""

FEWEST_SHARE: Final = 0.05
"""The same as a share of the source's own labels there: fewer are never one in ten of the deeper half."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OneWayLabels:
    """What the deep samples of other classes say of each class as a target.

    Attributes:
        p_value: smallest of its pairs, adjusted for all pairs of classes.
        source: the class of that pair; -1 where no pair was looked at.
        share: of the deep samples of source and target, those with the target's label; 0 without a pair.
    """

    p_value: Float64[np.ndarray, "k"]
    source: Int64[np.ndarray, "k"]
    share: Float64[np.ndarray, "k"]


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Pairs of classes, and their samples in the deeper half of the source, by label."""

    target: Int64[np.ndarray, "p"]
    source: Int64[np.ndarray, "p"]
    moved: Int64[np.ndarray, "p"]
    kept: Int64[np.ndarray, "p"]


def one_way_labels(
    embeddings: Rows,
    labels: Int64[np.ndarray, "n"],
    likeliest: Int64[np.ndarray, "n"],
    fitted: FittedProbe,
    noise: float,
    seed: Seed,
) -> OneWayLabels:
    """Return which classes hold labels that belong deep inside another class.

    Nothing is said of classes that the probe does not know: it finds all their samples likelier elsewhere.

    Args:
        embeddings: of the samples [n, d].
        labels: as given.
        likeliest: the class that the probe finds likeliest, out of fold: the content.
        fitted: the probe.
        noise: share of labels that are drawn from all classes alike.
        seed: of the rows that are looked at, where there are more than `MOST_ROWS`.
    """
    k = fitted.num_classes
    rows = drawn_by_class(labels, np.flatnonzero(np.isin(labels, fitted.known)), MOST_ROWS, seed)
    content = np.bincount(likeliest[rows], minlength=k)
    own = np.bincount(labels[rows][labels[rows] == likeliest[rows]], minlength=k)
    pairs = _counted(embeddings, labels, likeliest, fitted, rows)
    p_value, source, share = np.ones(k), np.full(k, -1, np.int64), np.zeros(k)
    if not len(pairs.target):
        return OneWayLabels(p_value=p_value, source=source, share=share)
    ratio = content[pairs.target] / np.maximum(content[pairs.source], 1)
    size = own[pairs.target] / np.maximum(own[pairs.source], 1)
    back = _odds_back(pairs, k) * np.maximum(1, size) ** 2
    by_noise = noise / k / (1 - noise + noise / k)
    odds = np.maximum(ODDS * np.maximum(1, ratio), MARGIN * back) + by_noise
    number = pairs.moved + pairs.kept
    # sf(x - 1) is the chance of x or more.
    chance = k * (k - 1) * binom.sf(pairs.moved - 1, number, odds / (1 + odds))
    chance[size > LARGEST_RATIO] = 1.0
    for place in np.argsort(-chance, kind="stable"):
        target = pairs.target[place]
        p_value[target], source[target] = min(1.0, chance[place]), pairs.source[place]
        share[target] = pairs.moved[place] / max(1, number[place])
    return OneWayLabels(p_value=p_value, source=source, share=share)


def _counted(
    embeddings: Rows,
    labels: Int64[np.ndarray, "n"],
    likeliest: Int64[np.ndarray, "n"],
    fitted: FittedProbe,
    rows: Int64[np.ndarray, "m"],
) -> _Pairs:
    """Return the pairs with enough labels in either direction, and the labels in the deeper half."""
    k = fitted.num_classes
    other = rows[labels[rows] != likeliest[rows]]
    cells, count = np.unique(labels[other] * k + likeliest[other], return_counts=True)
    own = np.bincount(labels[rows][labels[rows] == likeliest[rows]], minlength=k)
    enough = np.maximum(FEWEST, FEWEST_SHARE * own[cells % k])
    target, source = np.divmod(cells[count >= enough], k)
    cells = np.unique(np.concatenate((target * k + source, source * k + target)))
    target, source = np.divmod(cells, k)
    pair, sample = _members(target, source, labels, likeliest, rows)
    depth = _depths(embeddings, fitted, sample, source[pair], target[pair])
    order = np.lexsort((-depth, pair))
    pair, sample = pair[order], sample[order]
    size = np.bincount(pair, minlength=len(target))
    place = np.arange(len(pair)) - np.repeat(np.cumsum(size) - size, size)
    deep = place < (size[pair] + 1) // 2
    is_target = labels[sample] == target[pair]
    moved, kept = (np.bincount(pair[deep & of], minlength=len(target)) for of in (is_target, ~is_target))
    return _Pairs(target, source, moved, kept)


def _members(
    target: Int64[np.ndarray, "p"],
    source: Int64[np.ndarray, "p"],
    labels: Int64[np.ndarray, "n"],
    likeliest: Int64[np.ndarray, "n"],
    rows: Int64[np.ndarray, "m"],
) -> tuple[Int64[np.ndarray, "e"], Int64[np.ndarray, "e"]]:
    """Return number of the pair and sample, of all samples of the source's content with either label."""
    order = rows[np.argsort(likeliest[rows], kind="stable")]
    starts = np.searchsorted(likeliest[order], source, side="left")
    ends = np.searchsorted(likeliest[order], source, side="right")
    pairs, samples = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        inside = order[start:end]
        inside = inside[(labels[inside] == source[number]) | (labels[inside] == target[number])]
        pairs.append(np.full(len(inside), number))
        samples.append(inside)
    return np.concatenate(pairs), np.concatenate(samples)


def _depths(
    embeddings: Rows,
    fitted: FittedProbe,
    sample: Int64[np.ndarray, "e"],
    source: Int64[np.ndarray, "e"],
    target: Int64[np.ndarray, "e"],
) -> Float64[np.ndarray, "e"]:
    """Return the log-odds of the source against the target for each sample, out of fold."""
    depth = np.zeros(len(sample))
    for fold in range(len(fitted.discriminants)):
        entries = np.flatnonzero(fitted.fold[sample] == fold)
        entries = entries[np.argsort(sample[entries], kind="stable")]
        distinct, place = np.unique(sample[entries], return_inverse=True)
        for part in chunks(len(distinct)):
            log_probs = fitted.log_probs(embeddings, fold, distinct[part])
            of = entries[np.searchsorted(place, part.start) : np.searchsorted(place, part.stop)]
            row = np.searchsorted(distinct[part], sample[of])
            depth[of] = log_probs[row, source[of]] - log_probs[row, target[of]]
    return depth


def _odds_back(pairs: _Pairs, k: int) -> Float64[np.ndarray, "p"]:
    """Return the odds of each pair's other direction; half a label more, since few say little."""
    cells, backwards = pairs.target * k + pairs.source, pairs.source * k + pairs.target
    other = np.searchsorted(cells, backwards)
    return np.asarray((pairs.moved[other] + 0.5) / (pairs.kept[other] + 0.5))
