"""Cause by removal: is a label believed for what the flagged share, or for what their class looks like?"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.special import softmax
from scipy.stats import hypergeom

from clipguard.compute.cross_validation import Groups, fold_numbers
from clipguard.compute.lanes import in_lanes
from clipguard.compute.recipes import SmallNetConfig
from clipguard.compute.small_nets import train_small_nets
from clipguard.compute.training import EpochHook, cross_entropy
from clipguard.detection.drawn_rows import MOST_ROWS, drawn_by_class
from clipguard.detection.entropy_map import EntropyMapConfig, rank
from clipguard.detection.net_configs import TriggerDetectorConfig
from clipguard.detection.sample_scores import SampleScores
from clipguard.seeds import Seed
from clipguard.types import ImageSet

Cause = Literal["trigger", "shortcut", "natural", "undecided"]
"""Why a group is believed early.

`trigger`: for what its samples share, and their labels are wrong. `shortcut`: for what they share, but their
labels may be right: a watermark, or clean-label poison; the intent is unknown. `natural`: for what the class
looks like.
"""

OWN: Final = 0.3
"""Least excess of belief that only the group explains. On development rows (3,000 to 10,000 samples),
poison and watermarks have 0.37 to 0.94, natural groups of 7 or more held-out samples at most 0.15."""

COMMON: Final = 0.2
"""Largest excess of a natural group, and least belief of a net that has not met it; see `OWN`."""

FEWEST: Final = 5
"""Held-out samples below which a mean says nothing."""

WRONG: Final = 0.5
"""Largest agreement of the guide with wrong labels, over its agreement with the rest of the class. On
development rows, dirty-label poison has 0 to 0.17, a watermark or clean-label poison 0.69 or more."""

LEFT: Final = 0.25
"""Share of a class's trusted samples that must be left to learn from beside groups that are held out."""

ALPHA: Final = 0.01
"""Level of the test that the guide agrees less with the group than with the rest of the class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Belief:
    """Mean probabilities of the given label under two nets, one of which has met the flagged group.

    Both nets have learned from none of the samples that these are means of.

    Attributes:
        label: the suspected class.
        held_out: flagged samples of it that were scored: the half that no net has learned from.
        group_with: their label's probability under the net that has met the other half.
        group_without: the same under the net that has learned from trusted samples alone.
        trusted: trusted samples of the class that were scored; both nets were trained without them.
        trusted_with: their label's probability under the first net; None without any.
        trusted_without: the same under the second net; None without any.
    """

    label: int
    held_out: int
    group_with: float
    group_without: float
    trusted: int
    trusted_with: float | None
    trusted_without: float | None

    @property
    def excess(self) -> float:
        """How much more the first net believes the group, less what it believes the class more.

        The second net knows fewer samples of the class. What it therefore believes less is no sign of a
        trigger. A gain below 0 is noise; without a trusted sample none is known.
        """
        gain = 0.0
        if self.trusted_with is not None and self.trusted_without is not None:
            gain = self.trusted_with - self.trusted_without
        return self.group_with - self.group_without - max(0.0, gain)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """In how many samples of a class the guide finds the given label likeliest.

    Attributes:
        agreeing: flagged samples with that label.
        flagged: all flagged samples of the class.
        rest_agreeing: others with that label.
        rest: all others of the class.
    """

    agreeing: int
    flagged: int
    rest_agreeing: int
    rest: int

    @property
    def labels_are_wrong(self) -> bool:
        """Whether the guide agrees with the flagged labels much less than with the class's others.

        Both a large difference (`WRONG`) and a significant one (Fisher's exact test, one-sided, `ALPHA`).
        Where the guide cannot read a class at all, it cannot say so.
        """
        if not self.flagged or not self.rest:
            return False
        total, agreeing = self.flagged + self.rest, self.agreeing + self.rest_agreeing
        p_value = hypergeom.cdf(self.agreeing, total, agreeing, self.flagged)
        rates = self.agreeing / self.flagged, self.rest_agreeing / self.rest
        return bool(p_value <= ALPHA and rates[0] <= WRONG * rates[1])


def causes(beliefs: tuple[Belief, ...], agreements: tuple[Agreement, ...]) -> tuple[Cause, ...]:
    """Return the cause of each suspected class, given what the guide says of its labels; same order."""
    return tuple(_cause(belief, agreement) for belief, agreement in zip(beliefs, agreements, strict=True))


def _cause(belief: Belief, agreement: Agreement) -> Cause:
    if belief.held_out < FEWEST:
        return "undecided"
    if belief.excess >= OWN:
        return "trigger" if agreement.labels_are_wrong else "shortcut"
    if belief.excess <= COMMON <= belief.group_without:
        return "natural"
    return "undecided"


def agreements(scores: SampleScores, flagged: Bool[np.ndarray, "n"]) -> tuple[Agreement, ...]:
    """Return what the guide says of each class with flagged samples, the classes ascending."""
    agreeing = scores.guide_class == scores.labels
    return tuple(
        Agreement(
            agreeing=int((agreeing & flagged & members).sum()),
            flagged=int((flagged & members).sum()),
            rest_agreeing=int((agreeing & ~flagged & members).sum()),
            rest=int((~flagged & members).sum()),
        )
        for members in (scores.labels == label for label in np.unique(scores.labels[flagged]))
    )


def trusted_samples(
    scores: SampleScores,
    flagged: Bool[np.ndarray, "n"],
    entropy_map: EntropyMapConfig,
    detector: TriggerDetectorConfig,
) -> Bool[np.ndarray, "n"]:
    """Return the samples that the second net learns from.

    None is likelier than not to carry a trigger, after the first round or the last: poison that refinements
    have lost keeps its first score. In suspected classes, none is a candidate for its guide rank, or for the
    linear probe's where the guide is weak: wrong labels that the detector has missed are among these. What is
    a candidate for an early loss alone is trusted: otherwise the net would not know what an easy class looks
    like.
    """
    low = np.maximum(scores.first_round, scores.trigger_score) <= detector.clean
    in_suspected = np.isin(scores.labels, scores.labels[flagged])
    improbable = rank(scores.guide_nll) > 1 - entropy_map.candidate
    if scores.second_axis is not None:
        improbable |= rank(scores.second_axis) > 1 - entropy_map.candidate
    trusted: Bool[np.ndarray, n] = low & ~flagged & ~(in_suspected & improbable)
    return trusted


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """Which samples the two trainings meet, and which are scored.

    Attributes:
        with_group: the first net learns from them: all but the scored ones.
        without_group: the second net learns from them: trusted samples but the scored ones.
        group: the held-out half of each class's flagged group.
        trusted: trusted samples of the same classes, as many of each if there are twice as many.
    """

    with_group: Bool[np.ndarray, "n"]
    without_group: Bool[np.ndarray, "n"]
    group: Bool[np.ndarray, "n"]
    trusted: Bool[np.ndarray, "n"]


def removal(
    labels: Int64[np.ndarray, "n"],
    trusted: Bool[np.ndarray, "n"],
    flagged: Bool[np.ndarray, "n"],
    seed: Seed,
    groups: Groups | None = None,
) -> Removal:
    """Return the two trainings: the flagged group of each class is split in halves at random.

    Where samples come in `Groups`, such as videos, halves are of whole ones, and neither net learns from what
    shares one with a scored sample: it would know the video and not the trigger. Where that is not possible,
    since a class has one video or would lose most of its trusted samples, samples are split one by one.

    Args:
        labels: as given.
        trusted: samples that the second net may learn from; none of them is flagged.
        flagged: the flagged groups of all suspected classes.
        seed: of the halves.
        groups: of the samples; None without any.
    """
    group, known = np.zeros(len(labels), dtype=bool), np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels[flagged]).tolist():
        draw = seed.child("halves", label).generator()
        members, others = (np.flatnonzero(some & (labels == label)) for some in (flagged, trusted))
        if groups is not None:
            halves = fold_numbers(len(members), 2, draw, groups[members])
            group[members[halves == 1]] = True
            # Whoever shares a video with these is learned from by no net in any case.
            others = others[np.isin(groups[others], groups[members[halves == 1]])]
            known[draw.permutation(others)[: int((halves == 1).sum())]] = True
            continue
        held_out = draw.permutation(members)[: (len(members) + 1) // 2]
        group[held_out] = True
        known[draw.permutation(others)[: min(len(held_out), len(others) // 2)]] = True
    scored = group | known
    learnable = ~scored if groups is None else ~np.isin(groups, groups[scored])
    made = Removal(
        with_group=learnable, without_group=trusted & ~flagged & learnable, group=group, trusted=known
    )
    if groups is not None and not _is_fair(made, labels, trusted, flagged):
        return removal(labels, trusted, flagged, seed)
    return made


def _is_fair(
    split: Removal,
    labels: Int64[np.ndarray, "n"],
    trusted: Bool[np.ndarray, "n"],
    flagged: Bool[np.ndarray, "n"],
) -> bool:
    """Return whether each suspected class has flagged samples on both sides, and enough trusted ones left."""

    def of_class(rows: Bool[np.ndarray, "n"]) -> Int64[np.ndarray, "k"]:
        return np.bincount(labels[rows], minlength=int(labels.max()) + 1)

    classes = np.unique(labels[flagged])
    met, held_out = of_class(split.with_group & flagged), of_class(split.group)
    left, before = of_class(split.without_group), of_class(trusted & ~flagged)
    fair = (met > 0) & (held_out > 0) & (left >= LEFT * before)
    return bool(fair[classes].all())


def beliefs(  # what a scan knows, and how a small net is trained
    data: ImageSet,
    trusted: Bool[np.ndarray, "n"],
    flagged: Bool[np.ndarray, "n"],
    config: SmallNetConfig,
    seed: Seed,
    on_epoch: EpochHook | None = None,
) -> tuple[Belief, ...]:
    """Return what two short trainings say of each class with flagged samples, the classes ascending.

    A net that meets half of a poisoned group learns what its samples share, and believes the label of the
    other half for it. A net that has learned from `trusted_samples` alone does not. Samples that are flagged
    because their class is easy are believed by both, since others of the class look alike.

    Without a flagged sample, or without a trusted one that is not scored, nothing is trained or returned.
    Both nets are one run of the early-training model, with the same first weights. Of more than `MOST_ROWS`
    samples so many are drawn, all flagged ones among them as far as these are no more than half of that.

    Args:
        data: images as the small nets take them.
        trusted: samples that the second net may learn from, see `trusted_samples`.
        flagged: the flagged groups of all suspected classes.
        config: the early-training model.
        seed: of halves, draws and nets.
        on_epoch: called with the number of finished epochs of either net.
    """
    if not flagged.any():
        return ()
    split = removal(data.labels, trusted, flagged, seed, data.groups)
    if not split.without_group.any():
        return ()
    rows = np.flatnonzero(split.group | split.trusted)
    one = replace(config, runs=1, folds=1)

    def probability(trainable: Bool[np.ndarray, "n"]) -> Float64[np.ndarray, "n"]:
        learned = _drawn(data.labels, trainable, flagged, seed.child("rows"))
        loss, k = cross_entropy(data.labels), len(data.class_names)
        nets = train_small_nets(one, data.images, k, loss, learned, seed.child("net"), on_epoch)
        likely = softmax(nets.logits[rows].astype(np.float64), axis=1)
        believed = np.full(len(data), np.nan)
        believed[rows] = likely[np.arange(len(rows)), data.labels[rows]]
        return believed

    believed = in_lanes([partial(probability, some) for some in (split.with_group, split.without_group)])
    return tuple(
        _belief(label, split, data.labels, believed) for label in np.unique(data.labels[flagged]).tolist()
    )


def _drawn(
    labels: Int64[np.ndarray, "n"],
    trainable: Bool[np.ndarray, "n"],
    flagged: Bool[np.ndarray, "n"],
    seed: Seed,
) -> Bool[np.ndarray, "n"]:
    """Return the samples that a net learns from: all, or `MOST_ROWS`, flagged ones first."""
    groups, others = np.flatnonzero(trainable & flagged), np.flatnonzero(trainable & ~flagged)
    first = drawn_by_class(labels, groups, MOST_ROWS // 2, seed.child("flagged"))
    rest = drawn_by_class(labels, others, MOST_ROWS - len(first), seed.child("others"))
    drawn = np.zeros(len(labels), dtype=bool)
    drawn[first] = drawn[rest] = True
    return drawn


def _belief(
    label: int, split: Removal, labels: Int64[np.ndarray, "n"], believed: list[Float64[np.ndarray, "n"]]
) -> Belief:
    def mean(rows: Bool[np.ndarray, "n"], net: int) -> float:
        return float(believed[net][rows].mean())

    group, trusted = split.group & (labels == label), split.trusted & (labels == label)
    return Belief(
        label=label,
        held_out=int(group.sum()),
        group_with=mean(group, 0),
        group_without=mean(group, 1),
        trusted=int(trusted.sum()),
        trusted_with=mean(trusted, 0) if trusted.any() else None,
        trusted_without=mean(trusted, 1) if trusted.any() else None,
    )
