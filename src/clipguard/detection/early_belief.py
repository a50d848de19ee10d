"""Dirty-label axis of the verdict: labels that look wrong and that a briefly trained net believes.

A label that the guide finds improbable is hard for the early-training model as well: it is wrong, or the
image is unusual. A trigger turns this round, because it is learned before all objects. So in each class the
two are crossed: is the label doubted, and is its early loss low? Without a trigger both are independent or,
nearly always, go together the other way. The null says that the odds of a low early loss are at most Gamma
times as high among the doubted labels of a class as among its others. Given the margins, the count then
follows Fisher's noncentral hypergeometric distribution (Fisher 1935; sensitivity analysis as in Rosenbaum
2002, chapter 4).
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.optimize import brentq
from scipy.stats import hypergeom, nchypergeom_fisher, poisson

from clipguard.detection.entropy_map import class_ranks, rank

TAIL: Final = 0.1
"""Share of all labels that count as doubted, and of each class's labels that count as believed."""

LARGEST_STRENGTH: Final = 1e4
"""Where strengths end: beyond it, hardly any label but the doubted is believed."""

CORNERS: Final = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
"""Shares s of the labels with the highest loss under the guide and the lowest early loss that are flagged."""

FALSE_SHARE: Final = 0.1
"""Largest estimated share of correct labels among those that a wider corner adds."""

UNEQUAL: Final = 2.0
"""How many times the mean rate of the other classes a class without poison may reach in a corner."""


class Crossed(NamedTuple):
    """The table of each class: doubted against believed early.

    Attributes:
        both: doubted labels with a low early loss.
        doubted: all doubted ones.
        believed: all with a low early loss.
        size: of the class.
    """

    both: Int64[np.ndarray, "k"]
    doubted: Int64[np.ndarray, "k"]
    believed: Int64[np.ndarray, "k"]
    size: Int64[np.ndarray, "k"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyBelief:
    """What the axis says of each class, and which labels it flags.

    Attributes:
        p_value: that the odds ratio is at most 1, times the number of classes that have samples.
        strength: largest odds ratio at which the class is still rejected; 0 for none.
        suspected: classes that are rejected at an odds ratio of 1.
        flagged: labels of these classes.
        at_least: lower bound of the number of poisoned samples in each class.
        false_share: smallest estimated share of correct labels of its class in a corner that holds a sample;
            1 outside all corners and outside suspected classes.
    """

    p_value: Float64[np.ndarray, "k"]
    strength: Float64[np.ndarray, "k"]
    suspected: Bool[np.ndarray, "k"]
    flagged: Bool[np.ndarray, "n"]
    at_least: Int64[np.ndarray, "k"]
    false_share: Float64[np.ndarray, "n"]


class Corners(NamedTuple):
    """What the corners of the suspected classes say, see `corners`."""

    flagged: Bool[np.ndarray, "n"]
    at_least: Int64[np.ndarray, "k"]
    false_share: Float64[np.ndarray, "n"]


def early_belief(
    doubt: Float64[np.ndarray, "n"],
    early_nll: Float64[np.ndarray, "n"],
    labels: Int64[np.ndarray, "n"],
    num_classes: int,
    alpha: float,
) -> EarlyBelief:
    """Return what the axis says at `alpha` over all classes.

    Args:
        doubt: a loss of the given label that no training on these labels has lowered, in any unit.
        early_nll: the early-training model's loss of it.
        labels: as given.
        num_classes: k, empty classes included.
        alpha: level, over all classes together.
    """
    table = crossed(doubt, early_nll, labels, num_classes)
    p_value = class_p_values(table)
    suspected = p_value <= alpha
    found = corners(doubt, early_nll, labels, suspected, alpha)
    return EarlyBelief(
        p_value=p_value, strength=strengths(table, alpha), suspected=suspected, **found._asdict()
    )


def crossed(
    doubt: Float64[np.ndarray, "n"],
    early_nll: Float64[np.ndarray, "n"],
    labels: Int64[np.ndarray, "n"],
    num_classes: int,
) -> Crossed:
    """Return the table of each class; `doubt` is a loss of the given label, in any unit."""
    doubted, believed = rank(doubt) > 1 - TAIL, class_ranks(early_nll, labels) < TAIL
    sides = (doubted & believed, doubted, believed, np.ones(len(labels), bool))
    return Crossed(*(np.bincount(labels[side], minlength=num_classes) for side in sides))


def class_p_values(table: Crossed) -> Float64[np.ndarray, "k"]:
    """Return the p-value of each class at an odds ratio of 1 (Fisher's exact test), times the classes."""
    several = max(1, int((table.size > 0).sum()))
    tails = hypergeom.sf(table.both - 1, table.size, table.doubted, table.believed)
    return np.asarray(np.minimum(1.0, np.where(table.both > 0, tails, 1.0) * several))


def strengths(table: Crossed, alpha: float) -> Float64[np.ndarray, "k"]:
    """Return the largest odds ratio at which each class is rejected at `alpha`, Bonferroni over classes.

    Only for classes that are rejected at 1; the others have 0.
    """
    level = alpha / max(1, int((table.size > 0).sum()))
    rejected = class_p_values(table) <= alpha
    strength = np.zeros(len(table.size))
    for label in np.flatnonzero(rejected):
        strength[label] = _strength(Crossed(*(counts[label : label + 1] for counts in table)), level)
    return strength


def _strength(one: Crossed, level: float) -> float:
    """Return the largest odds ratio at which a single class is rejected at a level."""
    both, doubted, believed, size = (int(counts[0]) for counts in one)

    def excess(log_gamma: float) -> float:
        tail = nchypergeom_fisher.sf(both - 1, size, doubted, believed, np.exp(log_gamma))
        return float(tail) - level

    high = float(np.log(LARGEST_STRENGTH))
    if excess(high) < 0:
        return LARGEST_STRENGTH
    # This tail and Fisher's p-value are not computed alike: at the level itself, they may disagree.
    if excess(0.0) >= 0:
        return 1.0
    return float(np.exp(brentq(excess, 0.0, high, xtol=1e-3)))


def corners(
    doubt: Float64[np.ndarray, "n"],
    early_nll: Float64[np.ndarray, "n"],
    labels: Int64[np.ndarray, "n"],
    suspected: Bool[np.ndarray, "k"],
    alpha: float,
) -> Corners:
    """Return the flagged labels of the suspected classes, and a lower bound of each one's poisoned samples.

    The corner of a share s holds the labels whose doubt is among the highest s of all and whose early loss is
    among the lowest s. How many correct labels of a class lie there is estimated from the classes that are
    not suspected. A corner is widened as long as what it adds is correct in at most `FALSE_SHARE`. The bound
    takes the best corner, with `alpha` split among them and the classes: what it holds, less the upper
    quantile of a Poisson count whose mean is `UNEQUAL` times the estimate.
    """
    k = len(suspected)
    doubt_rank, early_rank = rank(doubt), rank(early_nll)
    size = np.bincount(labels, minlength=k)
    elsewhere = max(1, int(size[~suspected].sum()))
    flagged, at_least, false_share = np.zeros(len(labels), bool), np.zeros(k, np.int64), np.ones(len(labels))
    still_open, inner, inner_correct = suspected.copy(), np.zeros(k), np.zeros(k)
    level = alpha / (len(CORNERS) * max(1, int(suspected.sum())))
    for share in CORNERS:
        everywhere = (doubt_rank > 1 - share) & (early_rank < share)
        corner, inside = everywhere & suspected[labels], np.bincount(labels[everywhere], minlength=k)
        correct = size * (inside[~suspected].sum() + 1) / elsewhere
        still_open &= correct - inner_correct <= FALSE_SHARE * (inside - inner)
        flagged |= corner & still_open[labels]
        correct_share = np.minimum(1.0, correct / np.maximum(inside, 1))
        false_share[corner] = np.minimum(false_share[corner], correct_share[labels[corner]])
        bound = inside - poisson.isf(level, UNEQUAL * correct)
        at_least = np.maximum(at_least, np.where(suspected, bound, 0).astype(np.int64))
        inner, inner_correct = inside.astype(np.float64), correct
    return Corners(flagged, at_least, false_share)
