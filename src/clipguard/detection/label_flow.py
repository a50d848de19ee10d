"""Label flow: classes that receive far more improbable labels than they lose (label-only poison)."""

from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from clipguard.detection.linear_probe import FOLDS, Probe, linear_probe
from clipguard.seeds import Seed
from clipguard.types import Partition, Rows, State

GUIDE_LOSS: Final = 1.0
"""Nats; a label is flagged only if the guide's loss of it is larger as well."""

EXTREME_SHARE: Final = 0.015
"""Share of all labels, those with the highest out-of-fold loss, by which classes are compared."""

PAIR_SHARE: Final = 0.05
"""The same for pairs of classes."""

FEWEST: Final = 40
"""Labels that either share holds at least."""

SURPLUS_Z: Final = 4.0
"""Standard errors by which a suspected target class receives more improbable labels than it loses.

No class of 19 draws without targeted poison did so and stood out, too.
"""

OUTLIER: Final = 2.5
"""Robust standard deviations by which a suspected target class must exceed the median class."""

PAIR_Z: Final = 5.0
"""Standard errors by which a class must receive more labels from another class than it gives to that one."""

PAIR_RATIO: Final = 2.0
"""How many times the z-score of the next pair that must be."""


SMALL: Final = 0.1
"""Share of the median class's samples below which a class has no part in the flow between classes.

In none of the data sets that thresholds were chosen on, long tails of 50 to 1 among them, is one so small.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelFlowConfig:
    """How label-only poison is told from ordinary label errors. Losses are the linear probe's, out of fold.

    Attributes:
        flag_loss: nats; labels of such a class with a larger loss are flagged.
        exclude_loss: nats; others of such a class with a larger loss are excluded.
        refit_flag_loss: nats; what `flag_loss` is for a refitted probe, which gives correct labels a larger
            loss, too.
    """

    flag_loss: float = 5.0
    exclude_loss: float = 1.0
    refit_flag_loss: float = 9.0


class LabelFlow(NamedTuple):
    """Labels that are flagged, others that are excluded, and what the probe says (see `Probe`)."""

    flagged: Bool[np.ndarray, "n"]
    excluded: Bool[np.ndarray, "n"]
    loss: Float64[np.ndarray, "n"]
    soft_rows: Int64[np.ndarray, "m"]
    soft_labels: Float32[np.ndarray, "m k"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelView:
    """What label flow is measured on.

    Attributes:
        labels: as given.
        num_classes: k, empty classes included.
        guide_nll: the guide's loss of them, in nats.
        unexplained: samples that are not flagged for a trigger; only these count.
        groups: of the samples, which cross-validation never tears apart; None without any.
    """

    labels: Int64[np.ndarray, "n"]
    num_classes: int
    guide_nll: Float64[np.ndarray, "n"]
    unexplained: Bool[np.ndarray, "n"]
    groups: Int64[np.ndarray, "n"] | None = None


def label_only_poison(
    view: LabelView, probe: Probe, config: LabelFlowConfig, targets: Bool[np.ndarray, "k"] | None = None
) -> LabelFlow:
    """Return which labels are flagged, those of suspected target classes with a high loss, or excluded.

    Ordinary confusion goes both ways: about as many dogs are called cat as cats are called dog, as shares of
    their class. Label-only poison goes one way, into the target. So a class is a suspected target where it
    receives more improbable labels than it loses (`label_flow_z`). All others are left alone, so that
    symmetric noise and classes that the guide reads badly are not called an attack. Only the probe's loss
    counts for that: the probe learns this data set's labels, where a guide's bias would hide a few labels.

    The probe has a bias, too, which any large data set makes significant. So a suspected target class must
    also stand out from the others, by median and median absolute deviation of all z-scores (taken as at least
    1). That does not grow with n. Of two classes, neither can stand out.

    Where all poison comes from one class, the probe learns a part of it, and its loss is lower. So a class is
    a suspected target, too, where its flow with one other class goes one way, far more so than that of any
    other pair.

    Only unexplained samples count: where a trigger accounts for the wrong labels of a class, what is left in
    it are ordinary errors, and unlearning those would cost its recall. For the same reason a class is left
    alone in which a trigger explains more samples than are flagged here, or in which the probe has learned
    the trigger (`has_learned_trigger`).

    Other evidence may name further `targets`.

    Some poison has a moderate loss. Such labels of a suspected target class are excluded, not flagged: most
    of them are correct.
    """
    suspected = _suspected_targets(view, probe, config)
    if targets is not None:
        suspected |= targets
    flow = _of_classes(suspected, view, probe, config.flag_loss, config.exclude_loss)
    explained = np.bincount(view.labels[~view.unexplained], minlength=view.num_classes)
    flagged = np.bincount(view.labels[flow.flagged], minlength=view.num_classes)
    suspected &= (flagged > 0) & (explained <= flagged) & ~has_learned_trigger(view, probe)
    inside = suspected[view.labels]
    return flow._replace(flagged=flow.flagged & inside, excluded=flow.excluded & inside)


def has_learned_trigger(view: LabelView, probe: Probe) -> Bool[np.ndarray, "k"]:
    """Return the classes in which the probe finds explained labels likeliest at least as often as the others.

    There the guide's embeddings show the trigger, as they show a blended image, and the probe has taken it
    for the class. What it finds improbable are the labels of samples without the trigger.
    """
    believed, k = probe.likeliest == view.labels, view.num_classes

    def share(rows: Bool[np.ndarray, "n"]) -> Float64[np.ndarray, "k"]:
        total = np.bincount(view.labels[rows], minlength=k)
        return np.bincount(view.labels[rows & believed], minlength=k) / np.maximum(total, 1)

    explained = np.bincount(view.labels[~view.unexplained], minlength=k) > 0
    return np.asarray(explained & (share(~view.unexplained) >= share(view.unexplained)))


def refitted_label_flow(
    embeddings: Rows,
    view: LabelView,
    flow: LabelFlow,
    config: LabelFlowConfig,
    seed: Seed,
) -> LabelFlow:
    """Return what is flagged and excluded by a probe that was fitted without the flagged and excluded labels.

    Where much of a class is poison, the first probe has learnt the poison as much as the correct labels,
    above all where poison shares something that it sees, and gives the rest of it a low loss. Which classes
    are suspected targets stays as it was. A class of which too little would be left keeps the first result.
    The soft labels are given for all samples of the suspected classes.
    """
    suspected = np.bincount(view.labels[flow.flagged], minlength=view.num_classes) > 0
    if too_few_to_refit(view, flow):
        # The first probe once more, since it did not know whose soft labels are needed.
        nobody = np.zeros(len(view.labels), dtype=bool)
        first = linear_probe(embeddings, view.labels, suspected, nobody, seed, view.groups)
        return flow._replace(soft_rows=first.soft_rows, soft_labels=first.soft_labels)
    left_out = flow.flagged | flow.excluded
    probe = linear_probe(embeddings, view.labels, suspected, left_out, seed, view.groups)
    return _of_classes(suspected, view, probe, config.refit_flag_loss, config.exclude_loss)


def too_few_to_refit(view: LabelView, flow: LabelFlow) -> bool:
    """Return whether a suspected target class keeps fewer samples than a refitted probe needs."""
    suspected = np.bincount(view.labels[flow.flagged], minlength=view.num_classes) > 0
    kept = np.bincount(view.labels[~(flow.flagged | flow.excluded)], minlength=view.num_classes)
    return bool((kept[suspected] < 2 * FOLDS).any())


def _of_classes(
    suspected: Bool[np.ndarray, "k"],
    view: LabelView,
    probe: Probe,
    flag_loss: float,
    exclude_loss: float,
) -> LabelFlow:
    """Return the labels of the suspected classes with a high loss, and those with a moderate one."""
    inside, loss = suspected[view.labels] & view.unexplained, probe.loss
    high = (loss > flag_loss) & (view.guide_nll > GUIDE_LOSS)
    flagged = high & (probe.likeliest != view.labels) & inside
    excluded = inside & (loss > exclude_loss) & ~flagged
    return LabelFlow(flagged, excluded, loss, probe.soft_rows, probe.soft_labels)


def _suspected_targets(view: LabelView, probe: Probe, config: LabelFlowConfig) -> Bool[np.ndarray, "k"]:
    """Return which classes receive so many more improbable labels than they lose that they stand out."""
    loss = np.where(view.unexplained, probe.loss, 0.0)
    z = label_flow_z(_extreme(loss, EXTREME_SHARE, config.flag_loss), probe.likeliest, view)
    of_others = z[~small_classes(view)]
    median = np.median(of_others)
    deviation = max(1.0, 1.4826 * float(np.median(np.abs(of_others - median))))
    by_class = (z > SURPLUS_Z) & (z - median > OUTLIER * deviation)
    rate, variance = _flow(_extreme(loss, PAIR_SHARE, config.flag_loss), probe.likeliest, view)
    one_way = (rate - rate.T) / np.sqrt(variance + variance.T)
    # At most one pair is so far ahead. Of a single pair, nothing is the next.
    least = max(PAIR_Z, PAIR_RATIO * float(np.sort(one_way, axis=None)[-2])) if len(rate) > 2 else np.inf
    return np.asarray(by_class | (one_way > least).any(1))


def _extreme(loss: Float64[np.ndarray, "n"], share: float, least: float) -> Bool[np.ndarray, "n"]:
    """Return the labels with a loss above `least` among that share of all with the highest loss."""
    number = min(max(round(share * len(loss)), FEWEST), len(loss))
    bound = np.partition(loss, -number)[-number]
    return np.asarray((loss >= bound) & (loss > least))


def label_flow_z(
    improbable: Bool[np.ndarray, "n"], likeliest: Int64[np.ndarray, "n"], view: LabelView
) -> Float64[np.ndarray, "k"]:
    """Return by how many standard errors each class receives more improbable labels than it loses.

    With C the counts of improbable labels (given a, the probe says b) and n the class sizes among the
    unexplained samples, that is sum_b C_ab / n_a - sum_b C_ba / n_b in standard errors of Poisson counts. The
    second sum is over classes that are large enough; the others have 0 here.
    """
    rate, variance = _flow(improbable, likeliest, view)
    small = small_classes(view)
    lost, error_of_lost = rate[~small].sum(0), variance[~small].sum(0)
    z = (rate.sum(1) - lost) / np.sqrt(variance.sum(1) + error_of_lost)
    return np.asarray(np.where(small, 0.0, z))


def small_classes(view: LabelView) -> Bool[np.ndarray, "k"]:
    """Return classes whose unexplained samples are less than `SMALL` of the median class's; empty ones, too.

    The rate of a handful has so large a standard error that a single such class would hide any flow into the
    others.
    """
    size = np.bincount(view.labels[view.unexplained], minlength=view.num_classes)
    median = np.median(size[size > 0]) if size.any() else 0.0
    return np.asarray(size < max(1.0, SMALL * median))


def _flow(
    improbable: Bool[np.ndarray, "n"], likeliest: Int64[np.ndarray, "n"], view: LabelView
) -> tuple[Float64[np.ndarray, "k k"], Float64[np.ndarray, "k k"]]:
    """Return C_ab / n_a as `label_flow_z` has them, and their variances."""
    k = view.num_classes
    rows = improbable & (likeliest != view.labels)
    counts = np.zeros((k, k))
    np.add.at(counts, (view.labels[rows], likeliest[rows]), 1)
    size = np.maximum(np.bincount(view.labels[view.unexplained], minlength=k), 1)[:, None]
    # One more count in each row and column keeps a class with none of them from a standard error of 0.
    return counts / size, (counts + 1 / k) / size**2


def with_label_flags(
    partition: Partition, labels: Int64[np.ndarray, "n"], flow: LabelFlow, config: LabelFlowConfig
) -> Partition:
    """Return the partition with the flagged and the excluded labels; suspicion of the flagged halfway to 1.

    Their classes are quarantined: most poison that is not flagged waits there for re-admission. The soft
    label of a sample is the probe's opinion of the other classes; `flow` has those of all suspected classes.
    """
    touched = flow.flagged | flow.excluded
    if not touched.any():
        return partition
    by_trigger = partition.has(State.TRIGGER)
    quarantined = np.unique(labels[touched])
    state = partition.state.copy()
    state[flow.excluded & ~by_trigger], state[flow.flagged] = State.EXCLUDED, State.LABEL
    suspicion = np.where(flow.flagged, (1 + partition.suspicion) / 2, partition.suspicion)
    moved = replace(partition, state=state, suspicion=suspicion, quarantined=tuple(quarantined.tolist()))
    moved = replace(moved, clean_share=_clean_share(moved, flow.loss, labels, config))
    if not flow.flagged.any():
        return moved
    # Also of samples that are not flagged: the model's features may flag them later.
    rows = np.flatnonzero(flow.flagged | (np.isin(labels, quarantined) & ~by_trigger))
    places = np.searchsorted(flow.soft_rows, rows)
    return replace(moved, soft_rows=rows, soft_labels=flow.soft_labels[places])


def _clean_share(
    partition: Partition,
    loss: Float64[np.ndarray, "n"],
    labels: Int64[np.ndarray, "n"],
    config: LabelFlowConfig,
) -> Float64[np.ndarray, "k"]:
    """Return the estimated share of correct labels among the unflagged samples of each class.

    The probe gives a moderate loss to some correct labels of every class. So the low-loss labels of a
    quarantined class are its correct ones but for the share that has a moderate loss in the other classes.
    What exceeds that is poison. It is not taken as more than what was flagged: a class may have more moderate
    losses than others because it is hard.
    """
    k, rest = len(partition.clean_share), ~partition.flagged
    moderate = rest & (loss > config.exclude_loss)
    quarantined = np.array(partition.quarantined, dtype=np.int64)
    elsewhere = rest & ~np.isin(labels, quarantined)
    usual = float(np.mean(moderate[elsewhere])) if elsewhere.any() else 0.0
    have = np.bincount(labels[rest], minlength=k)
    low_loss = np.bincount(labels[rest & ~moderate], minlength=k) / max(1 - usual, 1e-12)
    least = have - np.bincount(labels[~rest], minlength=k)
    share = np.ones(k)
    share[quarantined] = np.clip(np.maximum(low_loss, least) / np.maximum(have, 1), 0.0, 1.0)[quarantined]
    return share


def label_q_values(
    partition: Partition, labels: Int64[np.ndarray, "n"], loss: Float64[np.ndarray, "n"]
) -> Float64[np.ndarray, "n"]:
    """Return, of each sample, the estimated share of correct labels among those of its class it ranks with.

    These are all labels with its loss or a higher one. A label's chance of being correct is the probe's
    probability of it. 1 outside the quarantined classes.
    """
    q_value = np.ones(len(labels))
    for label in partition.quarantined:
        rows = np.flatnonzero(labels == label)
        order = rows[np.argsort(-loss[rows], kind="stable")]
        correct = np.cumsum(np.exp(-loss[order])) / np.arange(1, len(order) + 1)
        last = np.searchsorted(-loss[order], -loss[order], side="right") - 1
        q_value[order] = np.minimum(1.0, correct[last])
    return q_value
