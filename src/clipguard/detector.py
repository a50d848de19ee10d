"""Trigger detector: what the flagged samples share in their pixels and the others lack."""

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.special import expit

from clipguard.errors import ClipguardError
from clipguard.probes import Probe, binary_loss, probe_logits
from clipguard.seeds import Seed
from clipguard.training import EpochHook, Recipe
from clipguard.types import ImageSet, Split


def _shallow() -> Probe:
    """Return the default probe; two folds, since memorised labels would flag themselves."""
    recipe = Recipe(epochs=6, batch_size=64, lr=0.1, crop=0.0, flip=False)
    return Probe(architecture="shallow-32", recipe=recipe, folds=2, fewest_steps=300)


@dataclass(frozen=True, slots=True, kw_only=True)
class Detector:
    """The net and its two thresholds on the probability of carrying a trigger.

    Attributes:
        probe: net and training.
        triggered: above it, a sample is unlearnt.
        clean: above it, a sample is not learnt from either, until the half-cured model believes its label.
    """

    probe: Probe = field(default_factory=_shallow)
    triggered: float = 0.8
    clean: float = 0.5

    def __post_init__(self) -> None:
        """Refuse thresholds that would put a sample into both sets."""
        if not 0 <= self.clean <= self.triggered <= 1:
            raise ClipguardError(
                f"detector thresholds clean {self.clean} and triggered {self.triggered}: "
                "give 0 <= clean <= triggered <= 1"
            )


LARGEST_WEIGHT: Final = 10.0
"""Of a sample, and its inverse the smallest: a handful must not rule a batch."""


def content_weights(split: Split, content: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Return weights under which `clean` shows the same mix of `content` as `triggered` does.

    `content` is the class that the guide sees in each image, whatever its label. A class that is learnt
    early, such as objects before a plain sky, crowds into `triggered`, and a net would take the sky for the
    trigger. Weights are 1 outside `clean`, and 1 on average in it.
    """
    k = int(content.max()) + 1
    flagged, trusted = (np.bincount(content[part], minlength=k) for part in (split.triggered, split.clean))
    ratio = (flagged / max(1, flagged.sum())) / np.maximum(trusted / max(1, trusted.sum()), 1e-12)
    weights = np.ones(len(content))
    weights[split.clean] = ratio.clip(1 / LARGEST_WEIGHT, LARGEST_WEIGHT)[content[split.clean]]
    if split.clean.any():
        weights[split.clean] /= weights[split.clean].mean()
    return weights


def trigger_scores(  # noqa: PLR0913  # what is learnt, from what, how, and who watches: no two belong together
    data: ImageSet,
    split: Split,
    content: Int64[np.ndarray, " n"],
    reserved: Bool[np.ndarray, " n"],
    detector: Detector,
    seed: Seed,
    on_epoch: EpochHook | None = None,
) -> Float64[np.ndarray, " n"]:
    """Return each sample's probability of lying in `triggered` rather than `clean`, given its pixels alone.

    A net is trained to tell the two sets of the split apart. Most of `triggered` is innocent and differs from
    `clean` in nothing, so that the best the net can say of it is the base rate. What poison shares, its
    trigger, is nearly absent from `clean`: there the probability goes to one. Reserved samples are scored
    but not learnt. `content` balances the two sets, see `content_weights`.
    """
    told = (split.clean | split.triggered) & ~reserved
    loss = binary_loss(split.triggered, content_weights(split, content))
    logits = probe_logits(detector.probe, data.images, 1, loss, told, seed, on_epoch)
    scores: Float64[np.ndarray, " n"] = expit(logits[:, 0].astype(np.float64))
    return scores


def refine(split: Split, trigger: Float64[np.ndarray, " n"], detector: Detector) -> Split:
    """Return the split after the detector's word.

    Only what carries a trigger stays `triggered`; only what the first split trusts and the detector does not
    doubt stays `clean`. The rest is for the half-cured model to judge. Suspicion becomes the mean of both.
    """
    return replace(
        split,
        clean=split.clean & (trigger <= detector.clean),
        triggered=trigger > detector.triggered,
        suspicion=(split.suspicion + trigger) / 2,
    )
