"""ABL: isolate what is learnt fastest, train on the rest, unlearn the isolated."""

from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Final

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from clipguard.compute.inference import classifier_logits
from clipguard.compute.recipes import Recipe
from clipguard.compute.training import LossFunction, cross_entropy, fit
from clipguard.defenses.budget import seconds_left
from clipguard.defenses.protocol import Case, Repaired
from clipguard.defenses.rivals.image_changes import changed_inputs, cutout
from clipguard.defenses.rivals.label_losses import cross_entropies
from clipguard.defenses.rivals.schedule import (
    PUBLISHED_CROP,
    inference_seconds,
    portions,
    reporting,
    rows_of_passes,
    share_of_schedule,
    training_seconds,
)
from clipguard.models.spec import Normalized, build
from clipguard.pipeline.config import DefenseConfig
from clipguard.seeds import Seed
from clipguard.types import ImageSet

_PLAIN: Final = Recipe(epochs=1, lr=0.1, weight_decay=1e-4, warmup=0.0, constant=True, crop=0.0, flip=False)
"""Batches of 128, SGD with Nesterov momentum, no augmentation."""

_CUTOUT: Final = 3 / 32
"""Side of the square that Cutout blackens, as a share of the image's longer side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AntiBackdoorLearning:
    """ABL: Li et al., "Anti-Backdoor Learning: Training Clean Models on Poisoned Data" (NeurIPS 2021).

    A net from scratch learns at a loss that is held near `flooding`; what has the lowest losses is isolated;
    the net is trained on the rest and then unlearns the isolated by gradient ascent.

    Published are all values, by the authors' repository. Left open and chosen here: the optimiser starts anew
    for each rate; unlearning takes at least as many steps as published, where the isolated are few.

    Attributes:
        budget: times clipguard's own seconds on the case; None runs the published schedule.
        config: clipguard's settings, for its seconds.
        flooding: value that the mean loss of a batch is held near.
        isolation_passes: of the first phase, at the rate 0.1.
        isolated: share of the samples that are unlearnt.
        finetuning_passes: on the rest, at the rate 0.1, then at 0.01; with crops, Cutout, and flips where the
            victim's recipe has them.
        unlearning_passes: on the isolated.
        unlearning_steps: fewest steps of all these passes: 5 passes over 500 samples have 20.
        unlearning_lr: rate of the ascent.
    """

    version: ClassVar[int] = 2

    budget: float | None = None
    config: DefenseConfig = field(default_factory=DefenseConfig)
    flooding: float = 0.5
    isolation_passes: int = 10
    isolated: float = 0.01
    finetuning_passes: tuple[int, int] = (40, 20)
    unlearning_passes: int = 5
    unlearning_steps: int = 20
    unlearning_lr: float = 5e-4

    def defend(self, case: Case) -> Repaired:
        """Return a net of its own, trained from scratch; it needs no victim."""
        seed, data = Seed(case.seed).child("abl"), case.data
        model = build(case.spec, seed.child("init"))
        share = share_of_schedule(
            seconds_left(case, self.config, self.budget, {}), lambda: self._published(model, data)
        )
        isolating = self._isolate(model, case, share)
        rows = lowest_losses(model, data, self.isolated)
        rest = np.setdiff1d(np.arange(len(data)), rows)
        finetuning = self._finetune(model, case, rest, share)
        unlearning = self._unlearn(model, case, rows)
        return Repaired(
            model=model,
            seconds={"isolation": isolating, "finetuning": finetuning, "unlearning": unlearning},
            notes={"schedule_share": share, "isolated": len(rows)},
        )

    def _published(self, model: Normalized, data: ImageSet) -> float:
        passes = self.isolation_passes + sum(self.finetuning_passes) + self.unlearning_passes * self.isolated
        a_pass = training_seconds(model, data, _PLAIN, Seed(0))
        return passes * a_pass + inference_seconds(model, data.images)

    def _isolate(self, model: Normalized, case: Case, share: float) -> float:
        data, seed = case.data, Seed(case.seed).child("abl", "isolation")
        parts = portions(self.isolation_passes, share)
        rows = rows_of_passes(np.arange(len(data)), parts, seed)
        loss, recipe = flooded(cross_entropy(data.labels), self.flooding), replace(_PLAIN, epochs=len(parts))
        report = reporting(case, "ABL: isolate", len(parts))
        return fit(model, data.images, rows, loss, recipe, seed, report).seconds

    def _finetune(self, model: Normalized, case: Case, rest: Int64[np.ndarray, "m"], share: float) -> float:
        data, seconds, loss = case.data, 0.0, cross_entropy(case.data.labels)
        side = max(1, round(_CUTOUT * max(data.images.shape[1:3])))
        for passes, lr in zip(self.finetuning_passes, (0.1, 0.01), strict=True):
            seed = Seed(case.seed).child("abl", "finetuning", f"{lr:g}")
            parts, squares = portions(passes, share), seed.child("cutout").torch()
            recipe = replace(_PLAIN, epochs=len(parts), lr=lr, crop=PUBLISHED_CROP, flip=case.recipe.flip)
            rows, report = rows_of_passes(rest, parts, seed), reporting(case, "ABL: fine-tune", len(parts))
            with changed_inputs(model, partial(cutout, side=side, generator=squares)):
                seconds += fit(model, data.images, rows, loss, recipe, seed, report).seconds
        return seconds

    def _unlearn(self, model: Normalized, case: Case, rows: Int64[np.ndarray, "m"]) -> float:
        data, seed = case.data, Seed(case.seed).child("abl", "unlearning")
        steps_a_pass = -(-len(rows) // _PLAIN.batch_size)
        passes = max(self.unlearning_passes, -(-self.unlearning_steps // steps_a_pass))
        # Seconds, of what removes the backdoor: no budget cuts them.
        recipe = replace(_PLAIN, epochs=passes, lr=self.unlearning_lr)
        return fit(model, data.images, rows, ascent(cross_entropy(data.labels)), recipe, seed).seconds


def flooded(loss: LossFunction, level: float) -> LossFunction:
    """Return |loss - level| + level of a batch's mean loss: below the level, it is climbed."""

    def value(logits: Tensor, rows: Tensor, images: Tensor) -> Tensor:
        return (loss(logits, rows, images) - level).abs() + level

    return value


def ascent(loss: LossFunction) -> LossFunction:
    """Return the negative loss."""
    return lambda logits, rows, images: -loss(logits, rows, images)


def lowest_losses(model: Normalized, data: ImageSet, share: float) -> Int64[np.ndarray, "m"]:
    """Return the rows of that share of the samples, two at least, whose cross-entropy is lowest."""
    losses = cross_entropies(classifier_logits(model, data.images), data.labels)
    count = max(2, round(share * len(data)))
    return np.sort(np.argsort(losses, kind="stable")[:count])
