"""Trigger detector: what the flagged samples share in their pixels and the others lack."""

from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float64
from scipy.special import expit

from clipguard.probes import Probe, binary_loss, probe_logits
from clipguard.seeds import Seed
from clipguard.training import EpochHook, Recipe
from clipguard.types import ImageSet, Split

DETECTOR = Probe(recipe=Recipe(epochs=4, lr=0.05, crop=0.0, flip=False), folds=2)
"""Two folds, so that no sample is judged by a net that has seen it: memorised labels would flag themselves."""


def trigger_scores(
    data: ImageSet, split: Split, probe: Probe, seed: Seed, on_epoch: EpochHook | None = None
) -> Float64[np.ndarray, "n"]:
    """Return each sample's probability of lying in `triggered` rather than `clean`, given its pixels alone.

    A net is trained to tell the two sets of the split apart. Most of `triggered` is innocent and differs from
    `clean` in nothing, so that the best the net can say of it is the base rate. What poison shares, its
    trigger, is nearly absent from `clean`: there the probability goes to one.
    """
    logits = probe_logits(
        probe, data.images, 1, binary_loss(split.triggered), split.clean | split.triggered, seed, on_epoch
    )
    return expit(logits[:, 0].astype(np.float64))


def refine(split: Split, trigger: Float64[np.ndarray, "n"], believed: Bool[np.ndarray, "n"]) -> Split:
    """Return the split after the detector's verdict.

    What more likely than not carries a trigger is `triggered`, wherever it stood before; what was flagged
    without one and is `believed` goes free.
    """
    carries = trigger > 0.5
    return replace(
        split, clean=(split.clean | believed) & ~carries, triggered=carries, suspicion=np.maximum(0, trigger)
    )
