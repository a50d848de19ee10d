"""PSBD, detection by prediction shift (Li, Chen, Liu and Wang, CVPR 2025, arXiv 2406.05826).

Published: the victim is asked again with dropout after each residual sum. Its predictions of clean images
shift, those of poison hold. The uncertainty is p_c - mean p_c over three passes with dropout, c being the
class predicted without. The dropout rate is the first at which 0.8 of some clean samples change their class.
A sample is flagged if its uncertainty is below the 25th percentile of the clean samples'. The score is the
uncertainty, negated.

Left open, and chosen here. Rates are tried in steps of 0.05, up to 0.95; if none shifts so many, the last
is taken. The share that shifts is a mean over the three passes. With fewer than ten classes, pure chance
would not shift 0.8; the share is then 8/9 of what chance would, which was chosen on the tiny set of the test.
A net without residual sums has dropout after its non-linear functions, such as ReLU. One without these is
refused. The clean samples of the published method are none that the victim was trained on; those of origin
`split` are.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
from jaxtyping import Float64
from scipy.special import softmax

from clipguard.compute.device import device_for
from clipguard.compute.inference import classifier_logits, planes
from clipguard.defenses.clean_slice import Origin, clean_slice
from clipguard.defenses.protocol import Case, Detected
from clipguard.defenses.rivals.dropout import Dropout, has_residual_sums
from clipguard.defenses.rivals.laps import Laps
from clipguard.errors import ClipguardError
from clipguard.models.spec import Normalized
from clipguard.pipeline.config import DefenseConfig
from clipguard.seeds import Seed
from clipguard.types import Rows

RATES: Final = tuple(step / 20 for step in range(1, 20))

OF_CHANCE: Final = 8 / 9
"""Largest share of what a choice among the classes by chance would shift: 0.8 of ten classes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionShift:
    """A detector of samples whose prediction holds under dropout.

    Attributes:
        passes: with dropout.
        shift: share of the clean samples that change their class, by which the rate is chosen.
        percentile: of the clean samples' uncertainty, below which a sample is flagged.
        origin: of the clean samples.
        config: of the scan that finds them.
    """

    passes: int = 3
    shift: float = 0.8
    percentile: float = 25.0
    origin: Origin = "split"
    config: DefenseConfig = field(default_factory=DefenseConfig)

    def defend(self, case: Case) -> Detected:
        """Return uncertainties, negated, and what is more certain than most clean samples.

        Raises:
            ClipguardError: there are too few clean samples, or the net has no place for dropout.
        """
        known_clean = clean_slice(case, self.origin, self.config)
        clean, scan_seconds = known_clean.samples, sum(known_clean.scan.values(), 0.0)
        victim, laps, seed = case.victim, Laps(), Seed(case.seed).child("prediction shift")
        passes_at = partial(dropped_out, victim, clean.images, passes=self.passes)
        before = probabilities(victim, clean.images)
        for rate in RATES:
            after = passes_at(rate, seed=seed.child("clean", f"{rate:g}"))
            shifted = float((after.argmax(2) != before.argmax(1)).mean())
            if shifted >= min(self.shift, OF_CHANCE * (1 - 1 / before.shape[1])):
                break
        threshold = float(np.percentile(uncertainty(before, after), self.percentile))
        laps.end("dropout rate")
        after = dropped_out(victim, case.data.images, rate, self.passes, seed.child("data"))
        values = uncertainty(probabilities(victim, case.data.images), after)
        laps.end("passes")
        return Detected(
            scores=-values,
            flagged=values < threshold,
            seconds={"clean samples": scan_seconds, **laps.seconds},
            notes={"dropout_rate": rate, "shift_of_clean": shifted, "threshold": threshold},
        )


def probabilities(model: Normalized, images: Rows) -> Float64[np.ndarray, "n k"]:
    """Return the model's posterior of every class."""
    posterior: Float64[np.ndarray, "n k"] = softmax(
        classifier_logits(model, images).astype(np.float64), axis=1
    )
    return posterior


def dropped_out(
    model: Normalized, images: Rows, rate: float, passes: int, seed: Seed
) -> Float64[np.ndarray, "p n k"]:
    """Return the posteriors of some passes with dropout of that rate.

    Raises:
        ClipguardError: the net has neither residual sums nor non-linear functions.
    """
    device = device_for(model)
    sums = has_residual_sums(model, planes(images[:2]))
    values = []
    for number in range(passes):
        with seed.child(number).torch_global(device.gpu), Dropout(rate, sums=sums) as dropout:
            values.append(probabilities(model, images))
        if not dropout.count:
            raise ClipguardError(
                "the model has neither residual sums nor non-linear functions, after which dropout could "
                "come: leave psbd out"
            )
    return np.stack(values)


def uncertainty(
    before: Float64[np.ndarray, "n k"], after: Float64[np.ndarray, "p n k"]
) -> Float64[np.ndarray, "n"]:
    """Return by how much the probability of the class predicted without dropout falls with it, on average."""
    rows, predicted = np.arange(len(before)), before.argmax(1)
    fall: Float64[np.ndarray, " n"] = before[rows, predicted] - after[:, rows, predicted].mean(0)
    return fall
