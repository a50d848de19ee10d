"""Trigger detector: what the flagged samples share in their pixels and the others lack."""

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float64
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


def trigger_scores(
    data: ImageSet,
    split: Split,
    reserved: Bool[np.ndarray, " n"],
    detector: Detector,
    seed: Seed,
    on_epoch: EpochHook | None = None,
) -> Float64[np.ndarray, " n"]:
    """Return each sample's probability of lying in `triggered` rather than `clean`, given its pixels alone.

    A net is trained to tell the two sets of the split apart. Most of `triggered` is innocent and differs from
    `clean` in nothing, so that the best the net can say of it is the base rate. What poison shares, its
    trigger, is nearly absent from `clean`: there the probability goes to one. Reserved samples are scored
    but not learnt.
    """
    told = (split.clean | split.triggered) & ~reserved
    loss = binary_loss(split.triggered)
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
