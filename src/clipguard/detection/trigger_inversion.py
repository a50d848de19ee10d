"""Trigger inversion: what the flagged samples share, as a trigger that can be put on other images."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8
from scipy.special import softmax

from clipguard.seeds import Seed
from clipguard.triggers.affine import AffineTrigger
from clipguard.types import NO_TRIGGER, Images, ImageSet, Partition, Scores, State, chunks

FEWEST: Final = 30
"""Flagged samples below which a median says too little."""

MOST: Final = 2000
"""Samples drawn a side; more would not change a median visibly."""

DISTANT: Final = 0.4
"""Kolmogorov-Smirnov distance above which a value whose median deviation is near 0 is taken as changed."""


TRIGGER_PER_LABEL_SHARE: Final = 0.2
"""Share of the flagged samples from which on a label may have a trigger of its own."""


def invert_triggers(
    data: ImageSet, partition: Partition, guide: Scores, seed: Seed
) -> tuple[AffineTrigger, ...]:
    """Return what the samples flagged for a trigger share: nothing, one trigger, or one for each label.

    Several attackers have a target each, and what all flagged samples have in common would be a mixture of
    their triggers. Where an attack leads to each of many classes, no label stands out and the trigger is one.
    """
    flagged = partition.has(State.TRIGGER)
    counts = np.bincount(data.labels[flagged], minlength=len(data.class_names))
    targets = np.flatnonzero((counts >= FEWEST) & (counts >= TRIGGER_PER_LABEL_SHARE * counts.sum()))
    if len(targets) < 2:
        one = invert_trigger(data, flagged, partition.clean, guide, seed)
        return () if one is None else (one,)
    triggers = []
    for label in targets.tolist():
        of_label = flagged & (data.labels == label)
        trigger = invert_trigger(data, of_label, partition.clean, guide, seed.child("label", label))
        triggers += [] if trigger is None else [replace(trigger, label=label)]
    return tuple(triggers)


def assigned(
    partition: Partition, labels: Int64[np.ndarray, "n"], triggers: Sequence[AffineTrigger]
) -> Partition:
    """Return the partition in which samples flagged for a trigger name the reconstructed one."""
    numbers = np.full(len(partition), NO_TRIGGER, np.int64)
    for number, trigger in enumerate(triggers):
        follows = partition.has(State.TRIGGER)
        numbers[follows if trigger.label is None else follows & (labels == trigger.label)] = number
    return replace(partition, trigger=numbers)


def invert_trigger(
    data: ImageSet,
    flagged: Bool[np.ndarray, "n"],
    clean: Bool[np.ndarray, "n"],
    guide: Scores,
    seed: Seed,
) -> AffineTrigger | None:
    """Return the affine trigger that turns clean images into flagged ones, or None if too few are flagged.

    A patch (scale 0), a blended pattern (scale 1 - alpha) and an added wave (scale 1) are all of the form
    x' = a x + b, value by value. Then median(x') = a median(x) + b and MAD(x') = a MAD(x), from which a and b
    follow. Medians tolerate innocent samples among the flagged as long as these are fewer than half. A warp
    or any other trigger that is not affine comes out as next to nothing.

    Flagged images all show one class where the attack is clean-label, and any class where it is not. The
    clean images to compare with are drawn so that the guide sees the same mix of classes in both.
    """
    rows, trusted = np.flatnonzero(flagged), np.flatnonzero(clean)
    if min(len(rows), len(trusted)) < FEWEST:
        return None
    mix = _mean_posterior(guide, rows) / np.maximum(_mean_posterior(guide, trusted), 1e-12)
    weight = np.concatenate([posteriors @ mix for posteriors in _posteriors(guide, trusted)])
    draw = seed.generator()
    shared = data.images[draw.permutation(rows)[:MOST]]
    plain = data.images[draw.choice(trusted, MOST, p=weight / weight.sum())]
    middle, spread = _median_and_mad(shared)
    plain_middle, plain_spread = _median_and_mad(plain)
    # A trigger hides what is beneath; it does not add contrast. A dead pixel has no contrast to compare.
    scale = np.where(plain_spread < 1, 1, np.minimum(spread / np.maximum(plain_spread, 1), 1))
    # Where half of the values are equal, as in the black around digits, a median and its deviation jump at
    # the slightest change: there, most of the flagged values must be others than the trusted ones.
    dull = np.minimum(spread, plain_spread) < 1
    same = dull & (_distance(shared, plain) < DISTANT)
    scale = np.where(same, 1, scale).astype(np.float32)
    shift = np.where(same, 0, middle - scale * plain_middle).astype(np.float32)
    return AffineTrigger(scale=scale, shift=shift)


def _posteriors(guide: Scores, rows: Int64[np.ndarray, "m"]) -> Iterator[Float64[np.ndarray, "_ k"]]:
    """Return what the guide sees in the samples of `rows`, some at a time."""
    for part in chunks(len(rows)):
        yield softmax(guide.scale * guide.logits[rows[part]].astype(np.float64), axis=1)


def _mean_posterior(guide: Scores, rows: Int64[np.ndarray, "m"]) -> Float64[np.ndarray, "k"]:
    """Return the mix of classes that the guide sees, summed sample by sample whatever the pieces."""
    total = np.zeros((1, guide.logits.shape[1]))
    for posteriors in _posteriors(guide, rows):
        total = np.concatenate([total, posteriors]).sum(0, keepdims=True)
    mean: Float64[np.ndarray, " k"] = total[0] / len(rows)
    return mean


def _median_and_mad(images: Images) -> tuple[Float32[np.ndarray, "h w 3"], Float32[np.ndarray, "h w 3"]]:
    """Return the median and the median absolute deviation of each value, line by line to save memory."""
    middle, spread = np.empty((2, *images.shape[1:]), dtype=np.float32)
    for line in range(images.shape[1]):
        values = images[:, line].astype(np.float32)
        middle[line] = np.median(values, axis=0)
        spread[line] = np.median(np.abs(values - middle[line]), axis=0)
    return middle, spread


def _distance(
    some: UInt8[np.ndarray, "m h w 3"], others: UInt8[np.ndarray, "l h w 3"]
) -> Float32[np.ndarray, "h w 3"]:
    """Return the Kolmogorov-Smirnov distance of each value's two distributions, in [0, 1]."""
    out = np.empty(some.shape[1:], dtype=np.float32)
    for line in range(some.shape[1]):
        first, second = (_cumulated(images[:, line]) for images in (some, others))
        out[line] = np.abs(first - second).max(-1)
    return out


def _cumulated(values: UInt8[np.ndarray, "m w 3"]) -> Float64[np.ndarray, "w 3 256"]:
    """Return the share of samples at or below each grey level."""
    m, w, channels = values.shape
    place = 256 * np.arange(w * channels).reshape(1, w, channels) + values
    counts = np.bincount(place.ravel(), minlength=256 * w * channels).reshape(w, channels, 256)
    shares: Float64[np.ndarray, "w 3 256"] = counts.cumsum(-1) / m
    return shares
