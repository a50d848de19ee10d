"""Label noise that leads somewhere: the classes that take in more implausible labels than they give out."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped
from scipy.special import softmax

from clipguard.seeds import Seed
from clipguard.types import Split

NO_LOG_PROB = -1e6
"""Log-probability in the place of a class that the probe could not learn: finite, so that it can be kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelFlowConfig:
    """How planted labels are told from honest mistakes.

    Attributes:
        folds: each sample is judged by a probe that was fitted without its fold.
        implausible: nats; a label of a fed class is flagged only if the probe gives it a larger loss.
        unbelieved: nats; and only if the guide gives it a loss larger than this.
        absurd: share of all labels by which a class is judged: those that the probe disbelieves most.
        fewest: of them, where that share is less.
        label_flow_z: standard errors by which a class must take in more absurd labels than it gives out.
        outlier: robust standard deviations by which its label_flow_z must exceed that of the median class.
        paired: share of all labels by which pairs of classes are judged, again the most disbelieved.
        pair: standard errors by which a class must take in more of them from one other class than it gives
            to that one.
        ahead: how many times that of the next pair it must be.
        doubt: nats; in a fed class, labels to which the probe gives a larger loss are not learnt from.
        looks: how often a fed class is looked at again by a probe that was fitted without what is flagged
            or doubted there so far.
        sure: nats; what `implausible` is on another look, which disbelieves honest labels more, too.
    """

    folds: int = 5
    implausible: float = 5.0
    unbelieved: float = 1.0
    absurd: float = 0.015
    fewest: int = 40
    label_flow_z: float = 4.0
    outlier: float = 2.5
    paired: float = 0.05
    pair: float = 5.0
    ahead: float = 2.0
    doubt: float = 1.0
    looks: int = 1
    sure: float = 9.0


class LabelFlow(NamedTuple):
    """Labels that look planted, others of their classes that are doubted, and who says so.

    `odds` are the probe's log p(class | embedding); doubted labels are not to be learnt from.
    """

    planted: Bool[np.ndarray, "n"]
    doubted: Bool[np.ndarray, "n"]
    odds: Float64[np.ndarray, "n k"]


def class_log_probs(
    embeddings: Shaped[np.ndarray, "n d"],
    labels: Int64[np.ndarray, "n"],
    k: int,
    reserved: Bool[np.ndarray, "n"],
    noise: LabelFlowConfig,
    seed: Seed,
) -> Float64[np.ndarray, "n k"]:
    """Return log p(class | embedding) under equal priors, each row from a probe that has not seen it.

    The probe is linear discriminant analysis with Ledoit-Wolf shrinkage on the guide's image embeddings: it
    is exact, takes seconds, and a few per cent of wrong labels hardly move a class mean. Reserved samples are
    judged but not learnt. A class with fewer than two samples a fold takes no part: its column is `NO_LOG_PROB`,
    and so are all columns where no two classes are left.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    out = np.full((len(labels), k), NO_LOG_PROB)
    known = np.flatnonzero(np.bincount(labels[~reserved], minlength=k) >= 2 * noise.folds)
    if len(known) < 2:
        return out
    fold = seed.numpy().permutation(np.arange(len(labels)) % noise.folds)
    for number in range(noise.folds):
        learnt, judged = ~reserved & (fold != number) & np.isin(labels, known), fold == number
        present = np.unique(labels[learnt])
        probe = LinearDiscriminantAnalysis(
            solver="lsqr", shrinkage="auto", priors=np.full(len(present), 1 / len(present))
        )
        probe.fit(embeddings[learnt].astype(np.float64), labels[learnt])
        if judged.any():
            said = probe.predict_log_proba(embeddings[judged].astype(np.float64))
            out[np.ix_(judged, present)] = np.maximum(said, NO_LOG_PROB / 2)
    return out


def label_only_poison(
    guide_nll: Float64[np.ndarray, "n"],
    odds: Float64[np.ndarray, "n k"],
    labels: Int64[np.ndarray, "n"],
    unexplained: Bool[np.ndarray, "n"],
    noise: LabelFlowConfig,
) -> LabelFlow:
    """Return which labels look planted, the implausible ones of fed classes, and which others are doubted.

    Honest confusion goes both ways: about as many dogs are called cat as cats are called dog, as shares of
    their class. Labels that an attacker planted go one way, into the target. So a class is fed where it takes
    in more absurd labels than it gives out (`label_flow_z`). All others are left alone, so that symmetric noise
    and classes that the guide reads badly are not called an attack. The absurd ones are told by the probe
    alone, which learns this data set's labels; a guide's leanings would hide a few planted ones.

    The probe has leanings, too, which any large data set makes significant. So a fed class must also stand
    out from the others, by median and median absolute deviation of all surpluses (taken as at least 1): that
    does not grow with n. Of two classes, neither can.

    Where all planted labels come from one class, the probe learns some of the lie, and they are less absurd:
    so a class is fed, too, where its exchange with one other class goes one way, far more so than that of any
    other pair.

    Only `unexplained` samples count: where a trigger accounts for the wrong labels of a class, what is left
    in it are honest mistakes, and unlearning those would cost its recall. For the same reason a class is left
    alone in which a trigger explains more samples than look planted.

    Some planted labels are plausible. So among those of a fed class, the ones that the probe doubts are not
    to be learnt from, though they are not flagged: most of them are honest.
    """
    k, disbelief = odds.shape[1], _disbelief(odds, labels, unexplained)
    fed = _fed(disbelief, odds, labels, unexplained, noise)
    planted, doubted, _ = _within(fed, guide_nll, odds, labels, disbelief, noise)
    explained = np.bincount(labels[~unexplained], minlength=k)
    found = np.bincount(labels[planted], minlength=k)
    fed &= (found > 0) & (explained <= found)
    return LabelFlow(planted & fed[labels], doubted & fed[labels], odds)


def refitted_label_flow(  # noqa: PLR0913  # what is judged, by what, and what was said of it: no two belong together
    embeddings: Shaped[np.ndarray, "n d"],
    guide_nll: Float64[np.ndarray, "n"],
    labels: Int64[np.ndarray, "n"],
    k: int,
    unexplained: Bool[np.ndarray, "n"],
    reserved: Bool[np.ndarray, "n"],
    judged: LabelFlow,
    noise: LabelFlowConfig,
    seed: Seed,
) -> LabelFlow:
    """Return which labels of the fed classes look planted, and which others are doubted, on another look.

    Where many labels of a class are planted, the probe has learnt them as much as the honest ones, above all
    where they share something that it sees, and finds the rest of them plausible. So it is fitted anew
    without what it flagged or doubted. Which classes are fed is not asked again.
    """
    fed = np.bincount(labels[judged.planted], minlength=k) > 0
    noise = replace(noise, implausible=noise.sure)
    for _ in range(noise.looks):
        left_out = reserved | judged.planted | judged.doubted
        if (np.bincount(labels[~left_out], minlength=k)[fed] < 2 * noise.folds).any():
            break
        odds = class_log_probs(embeddings, labels, k, left_out, noise, seed)
        judged = _within(fed, guide_nll, odds, labels, _disbelief(odds, labels, unexplained), noise)
    return judged


def _disbelief(
    odds: Float64[np.ndarray, "n k"], labels: Int64[np.ndarray, "n"], unexplained: Bool[np.ndarray, "n"]
) -> Float64[np.ndarray, "n"]:
    """Return the probe's loss of each unexplained label, in nats; 0 where it has no say."""
    own = odds[np.arange(len(labels)), labels]
    return np.where(unexplained & (own > NO_LOG_PROB), -own, 0.0)


def _within(
    fed: Bool[np.ndarray, "k"],
    guide_nll: Float64[np.ndarray, "n"],
    odds: Float64[np.ndarray, "n k"],
    labels: Int64[np.ndarray, "n"],
    disbelief: Float64[np.ndarray, "n"],
    noise: LabelFlowConfig,
) -> LabelFlow:
    """Return the implausible labels of the fed classes, and those that are not but are doubted."""
    implausible = (disbelief > noise.implausible) & (guide_nll > noise.unbelieved)
    planted = implausible & (odds.argmax(1) != labels) & fed[labels]
    return LabelFlow(planted, fed[labels] & (disbelief > noise.doubt) & ~planted, odds)


def _fed(
    disbelief: Float64[np.ndarray, "n"],
    odds: Float64[np.ndarray, "n k"],
    labels: Int64[np.ndarray, "n"],
    counted: Bool[np.ndarray, "n"],
    noise: LabelFlowConfig,
) -> Bool[np.ndarray, "k"]:
    """Return which classes take in so many more absurd labels than they give out that they stand out."""
    excess = label_flow_z(_absurd(disbelief, noise.absurd, noise), odds, labels, counted)
    middle = np.median(excess)
    usual = max(1.0, 1.4826 * float(np.median(np.abs(excess - middle))))
    by_class = (excess > noise.label_flow_z) & (excess - middle > noise.outlier * usual)
    rate, variance = _exchanged(_absurd(disbelief, noise.paired, noise), odds, labels, counted)
    one_way = (rate - rate.T) / np.sqrt(variance + variance.T)
    # At most one pair is so far ahead. Of a single pair, nothing is the next.
    least = max(noise.pair, noise.ahead * float(np.sort(one_way, axis=None)[-2])) if len(rate) > 2 else np.inf
    return np.asarray(by_class | (one_way > least).any(1))


def _absurd(
    disbelief: Float64[np.ndarray, "n"], share: float, noise: LabelFlowConfig
) -> Bool[np.ndarray, "n"]:
    """Return the implausible labels among that share of all that the probe disbelieves most."""
    number = min(max(round(share * len(disbelief)), noise.fewest), len(disbelief))
    least = np.partition(disbelief, -number)[-number]
    return np.asarray((disbelief >= least) & (disbelief > noise.implausible))


def label_flow_z(
    disbelieved: Bool[np.ndarray, "n"],
    odds: Float64[np.ndarray, "n k"],
    labels: Int64[np.ndarray, "n"],
    counted: Bool[np.ndarray, "n"],
) -> Float64[np.ndarray, "k"]:
    """Return by how many standard errors each class takes in more disbelieved labels than it gives out.

    With C the counts of disbelieved labels (given a, the probe says b) and n the class sizes among the
    `counted`, that is sum_b C_ab / n_a - sum_b C_ba / n_b in standard errors of Poisson counts.
    """
    rate, variance = _exchanged(disbelieved, odds, labels, counted)
    error = np.sqrt(variance.sum(1) + variance.sum(0))
    return np.asarray((rate.sum(1) - rate.sum(0)) / error)


def _exchanged(
    disbelieved: Bool[np.ndarray, "n"],
    odds: Float64[np.ndarray, "n k"],
    labels: Int64[np.ndarray, "n"],
    counted: Bool[np.ndarray, "n"],
) -> tuple[Float64[np.ndarray, "k k"], Float64[np.ndarray, "k k"]]:
    """Return C_ab / n_a as `label_flow_z` has them, and their variances."""
    k, said = odds.shape[1], odds.argmax(1)
    rows = disbelieved & (said != labels)
    counts = np.zeros((k, k))
    np.add.at(counts, (labels[rows], said[rows]), 1)
    size = np.maximum(np.bincount(labels[counted], minlength=k), 1)[:, None]
    # One more count in each row and column keeps a class with none of them from a standard error of 0.
    return counts / size, (counts + 1 / k) / size**2


def with_label_flags(
    split: Split, labels: Int64[np.ndarray, "n"], judged: LabelFlow, noise: LabelFlowConfig
) -> Split:
    """Return the split with the doubted, and the planted in `triggered`, their suspicion halfway to 1.

    The classes that they are in are closed: most of the planted labels that are left wait there for a
    half-cured model to believe them. What a planted label's image shows instead is the probe's opinion of the
    other classes.
    """
    planted, doubted, odds = judged
    closed, shown = np.unique(labels[planted | doubted]), None
    if planted.any():
        # Also of those that are not flagged: a later stage may.
        rows = planted | (np.isin(labels, closed) & ~split.triggered)
        others = odds[rows]
        np.put_along_axis(others, labels[rows, None], NO_LOG_PROB, axis=1)
        shown = np.zeros(odds.shape, np.float32)
        shown[rows] = softmax(others, axis=1)
    return replace(
        split,
        clean=split.clean & ~planted & ~doubted,
        triggered=split.triggered | planted,
        doubted=doubted & ~split.triggered,
        closed=tuple(closed.tolist()),
        honest=_honest(closed, odds, labels, split.triggered | planted, noise) if len(closed) else None,
        shown=shown,
        suspicion=np.where(planted, (1 + split.suspicion) / 2, split.suspicion),
    )


def _honest(
    closed: Int64[np.ndarray, "c"],
    odds: Float64[np.ndarray, "n k"],
    labels: Int64[np.ndarray, "n"],
    triggered: Bool[np.ndarray, "n"],
    noise: LabelFlowConfig,
) -> Float64[np.ndarray, "k"]:
    """Return the share of each class, what is triggered apart, that is thought to be labelled honestly.

    The probe doubts some honest labels of every class. So the labels of a closed class that it does not doubt
    are its honest ones but for the share that is doubted in the open classes; what exceeds that is planted.
    It is not more than what was flagged: a class may be doubted more than others because it is hard.
    """
    k, doubted = odds.shape[1], _disbelief(odds, labels, ~triggered) > noise.doubt
    rest = ~triggered
    open_rest = rest & ~np.isin(labels, closed)
    usual = float(np.mean(doubted[open_rest])) if open_rest.any() else 0.0
    have = np.bincount(labels[rest], minlength=k)
    vouched = np.bincount(labels[rest & ~doubted], minlength=k) / max(1 - usual, 1e-12)
    least = have - np.bincount(labels[triggered], minlength=k)
    share = np.ones(k)
    share[closed] = np.clip(np.maximum(vouched, least) / np.maximum(have, 1), 0.0, 1.0)[closed]
    return share
