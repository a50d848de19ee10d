"""FT-SAM: fine-tuning on clean samples towards weights around which the loss is low, too.

Source: Zhu et al., ICCV 2023, with BackdoorBench's values: adaptive SAM with rho 2, label smoothing 0.1, the
schedule of FT, clean samples balanced over classes, and BatchNorm's running statistics that follow the
first pass of a step only. Left open and chosen here: classes are balanced in each epoch by drawing all of
them equally often, smaller ones again; for schedule and augmentation see `finetuning`.
"""

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from clipguard.compute.device import tensor
from clipguard.compute.training import LossFunction, fit
from clipguard.defenses.budget import cut
from clipguard.defenses.protocol import Case, Repaired
from clipguard.defenses.rivals.clean_start import clean_start, seconds_of_fit
from clipguard.defenses.rivals.finetuning import FineTuningSettings
from clipguard.defenses.rivals.sam import sharpness_aware
from clipguard.defenses.rivals.schedule import reporting
from clipguard.seeds import Seed


@dataclass(frozen=True, slots=True, kw_only=True)
class SharpnessAwareTuning(FineTuningSettings):
    """Fine-tuning by adaptive sharpness-aware minimisation.

    Attributes:
        rho: how far the adversary moves the weights.
        label_smoothing: share of a label that all classes get.
    """

    rho: float = 2.0
    label_smoothing: float = 0.1

    def defend(self, case: Case) -> Repaired:
        """Return the fine-tuned victim."""
        start = clean_start(case, self, "ft-sam")
        model, data, seed = start.model, start.learned, start.seed
        recipe, smooth = self.recipe(case, model, len(data)), smoothed(data.labels, self.label_smoothing)

        def published_seconds() -> float:
            trial = copy.deepcopy(model)
            return seconds_of_fit(trial, data, sharpness_aware(trial, smooth, self.rho), recipe, seed)

        share = start.share(published_seconds)
        recipe = replace(recipe, epochs=cut(recipe.epochs, share))

        def rows(epoch: int) -> Int64[np.ndarray, "m"]:
            return balanced_rows(data.labels, seed.child("rows", epoch))

        report = reporting(case, "fine-tune towards flat weights", recipe.epochs)
        loss = sharpness_aware(model, smooth, self.rho)
        history = fit(model, data.images, rows, loss, recipe, seed, report)
        return Repaired(
            model=model,
            seconds={**start.scan, "fine-tuning": history.seconds},
            notes={"schedule_share": share},
        )


def smoothed(labels: Int64[np.ndarray, "n"], smoothing: float) -> LossFunction:
    """Return the mean cross-entropy of the labels, of which all classes share a part."""
    given = tensor(labels)

    def loss(logits: Tensor, rows: Tensor, _: Tensor) -> Tensor:
        targets = given[rows].to(logits.device)
        return torch.nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing)

    return loss


def balanced_rows(labels: Int64[np.ndarray, "n"], seed: Seed) -> Int64[np.ndarray, "m"]:
    """Return rows in which each class that occurs has as many as the others, n in all or up to k - 1 more.

    All rows of a class are taken before one is taken again.
    """
    draw, classes = seed.generator(), np.unique(labels)
    each = -(-len(labels) // len(classes))

    def of(kind: int) -> Int64[np.ndarray, "each"]:
        rows = np.flatnonzero(labels == kind)
        rounds = [draw.permutation(rows) for _ in range(-(-each // len(rows)))]
        return np.concatenate(rounds)[:each]

    return np.concatenate([of(int(kind)) for kind in classes])
