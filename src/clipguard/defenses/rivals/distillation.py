"""NAD: the victim learns to attend to what a fine-tuned copy of it attends to.

Source: Li et al., ICLR 2021: a teacher, fine-tuned on 5 % clean samples, and a student from the victim's
weights, whose loss adds the mean squared difference of L2-normalised attention maps, each the sum over
channels of squares. Rates and weights are BackdoorBench's, for residual nets: SGD at 0.01 with momentum 0.9,
weight decay 1e-4, batches of 256, weights of 500 for the first block and 1,000 for each other, a teacher of
10 epochs. A student of 100 is ours: its versions differ. The authors' own rates, 0.1 for two epochs and then
0.01, make the narrow nets of the benchmark forget (docs/rivals.md has figures). Left open and chosen here:
the teacher has the student's rates; which modules are blocks, see `block_outputs`. Crops, cosine, momentum
and nets without BatchNorm are as in `finetuning`.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clipguard.compute.device import device_for
from clipguard.compute.inference import planes
from clipguard.compute.training import LossFunction, cross_entropy, fit
from clipguard.defenses.budget import cut
from clipguard.defenses.protocol import Case, Repaired
from clipguard.defenses.rivals.block_outputs import attention_map, block_names, outputs_of
from clipguard.defenses.rivals.clean_start import CleanStart, clean_start, seconds_of_fit
from clipguard.defenses.rivals.finetuning import FineTuningSettings
from clipguard.defenses.rivals.schedule import reporting
from clipguard.models.spec import Normalized
from clipguard.types import ImageSet


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionDistillation(FineTuningSettings):
    """Neural attention distillation; `epochs` are the student's.

    Attributes:
        weight_decay: L2 penalty on all weights.
        teacher_epochs: passes of the teacher over the clean samples.
        first_weight: of the attention loss at the first block.
        weight: of the attention loss at each other block.
    """

    weight_decay: float = 1e-4
    teacher_epochs: int = 10
    first_weight: float = 500.0
    weight: float = 1000.0

    def defend(self, case: Case) -> Repaired:
        """Return the student.

        Raises:
            ClipguardError: the victim has no blocks to compare.
        """
        start = clean_start(case, self, "nad")
        student, teacher = start.model, copy.deepcopy(start.model)
        blocks = block_names(student, planes(start.learned.images[:1]))
        share = start.share(lambda: self._published_seconds(case, start, blocks))
        loss = cross_entropy(start.learned.labels)
        first = _trained(case, start, teacher, loss, share, self._teacher)
        with self._distilling(student, teacher, blocks, start.learned) as loss:
            second = _trained(case, start, student, loss, share, self)
        return Repaired(
            model=student,
            seconds={**start.scan, "teacher": first, "distillation": second},
            notes={"schedule_share": share, "blocks": len(blocks)},
        )

    @property
    def _teacher(self) -> FineTuningSettings:
        """The settings of the teacher's training."""
        return replace(self, epochs=self.teacher_epochs)

    @contextmanager
    def _distilling(
        self, student: Normalized, teacher: Normalized, blocks: tuple[str, ...], data: ImageSet
    ) -> Iterator[LossFunction]:
        """Give the student's loss: cross-entropy, and the distance to the teacher's attention."""
        plain = cross_entropy(data.labels)
        weights = [self.first_weight, *(self.weight for _ in blocks[1:])]
        with outputs_of(student, blocks) as own, outputs_of(teacher, blocks) as others:

            def loss(logits: Tensor, rows: Tensor, batch: Tensor) -> Tensor:
                with torch.no_grad(), device_for(teacher).autocast():
                    teacher.eval()(batch)
                value = plain(logits, rows, batch)
                size = batch.shape[2], batch.shape[3]
                for weight, block in zip(weights, blocks, strict=True):
                    value = value + weight * attention_loss(own[block], others[block], size)
                return value

            yield loss

    def _published_seconds(self, case: Case, start: CleanStart, blocks: tuple[str, ...]) -> float:
        """Return what both trainings would take uncut."""
        one, other, data = copy.deepcopy(start.model), copy.deepcopy(start.model), start.learned
        seconds = seconds_of_fit(
            one, data, cross_entropy(data.labels), self._teacher.recipe(case, one, len(data)), start.seed
        )
        one = copy.deepcopy(start.model)
        with self._distilling(one, other, blocks, data) as loss:
            recipe = self.recipe(case, one, len(data))
            return seconds + seconds_of_fit(one, data, loss, recipe, start.seed)


def _trained(  # what both trainings differ in, and the case that they share
    case: Case,
    start: CleanStart,
    model: Normalized,
    loss: LossFunction,
    share: float,
    settings: FineTuningSettings,
) -> float:
    """Train a model for a share of the schedule and return the seconds."""
    data = start.learned
    recipe = settings.recipe(case, model, len(data))
    recipe = replace(recipe, epochs=cut(recipe.epochs, share))
    report, seed = reporting(case, "distil attention", recipe.epochs), start.seed.child("phase", 0)
    return fit(model, data.images, np.arange(len(data)), loss, recipe, seed, report).seconds


def attention_loss(
    student: Float[Tensor, "b *_"], teacher: Float[Tensor, "b *_"], size: tuple[int, int]
) -> Float[Tensor, ""]:
    """Return the mean squared difference of the attention maps of two outputs of one block.

    Args:
        student: maps or tokens.
        teacher: the same of the other model, of the same shape.
        size: height and width of the images.
    """
    return torch.nn.functional.mse_loss(attention_map(student, *size), attention_map(teacher, *size))
