"""NAD: the victim learns to attend to what a fine-tuned copy of it attends to.

Source: Li et al., ICLR 2021. Published: a teacher fine-tuned for 5 to 10 epochs on 5 % clean samples; a
student from the victim's weights; 20 epochs of batches of 64, SGD at 0.1 for two epochs and then at 0.01,
Nesterov momentum 0.9, weight decay 1e-4; the mean squared difference of L2-normalised attention maps, each
the sum over channels of squares. Weights of the blocks differ between the paper, its code and BackdoorBench:
the last one's are taken, 500 for the first block and 1,000 for each other. Left open and chosen here: the
teacher has the student's schedule without distillation, for 10 epochs; crops and flips are those of the
victim's recipe; which modules are blocks, see `block_outputs`. A net without BatchNorm takes AdamW at 1e-3.
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
from clipguard.compute.recipes import Recipe
from clipguard.compute.training import LossFunction, cross_entropy, fit
from clipguard.defenses.budget import cut
from clipguard.defenses.protocol import Case, Repaired
from clipguard.defenses.rivals.block_outputs import attention_map, block_names, outputs_of
from clipguard.defenses.rivals.clean_start import CleanDataSettings, CleanStart, clean_start, seconds_of_fit
from clipguard.defenses.rivals.schedule import reporting
from clipguard.mitigation.rate import fitting_optimizer
from clipguard.models.spec import Normalized
from clipguard.types import ImageSet


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionDistillation(CleanDataSettings):
    """Neural attention distillation.

    Attributes:
        teacher_epochs: passes of the teacher over the clean samples.
        epochs: passes of the student.
        first_epochs: how many of either are at the first rate.
        first_lr: the first learning rate.
        lr: the learning rate after that.
        batch_size: samples a step.
        weight_decay: L2 penalty on all weights.
        first_weight: of the attention loss at the first block.
        weight: of the attention loss at each other block.
    """

    teacher_epochs: int = 10
    epochs: int = 20
    first_epochs: int = 2
    first_lr: float = 0.1
    lr: float = 0.01
    batch_size: int = 64
    weight_decay: float = 1e-4
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
        first = self._train(
            case, start, teacher, loss, self._phases(case, teacher, self.teacher_epochs, share)
        )
        with self._distilling(student, teacher, blocks, start.learned) as loss:
            phases = self._phases(case, student, self.epochs, share)
            second = self._train(case, start, student, loss, phases)
        return Repaired(
            model=student,
            seconds={**start.scan, "teacher": first, "distillation": second},
            notes={"schedule_share": share, "blocks": len(blocks)},
        )

    def _phases(self, case: Case, model: Normalized, epochs: int, share: float) -> tuple[Recipe, Recipe]:
        """Return the trainings at the first rate and at the second, cut to a share."""
        common = Recipe(
            epochs=cut(min(self.first_epochs, epochs), share),
            batch_size=self.batch_size,
            lr=self.first_lr,
            weight_decay=self.weight_decay,
            warmup=0.0,
            constant=True,
            crop=case.recipe.crop,
            flip=case.recipe.flip,
        )
        later = replace(common, epochs=cut(max(1, epochs - self.first_epochs), share), lr=self.lr)
        return fitting_optimizer(model, common), fitting_optimizer(model, later)

    def _train(  # the model, its loss and its phases, of a case and its samples
        self,
        case: Case,
        start: CleanStart,
        model: Normalized,
        loss: LossFunction,
        phases: tuple[Recipe, Recipe],
    ) -> float:
        """Train a model at both rates and return the seconds."""
        seconds, data = 0.0, start.learned
        for number, recipe in enumerate(phases):
            report = reporting(case, "distil attention", recipe.epochs)
            seed = start.seed.child("phase", number)
            seconds += fit(model, data.images, np.arange(len(data)), loss, recipe, seed, report).seconds
        return seconds

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
        seconds = 0.0
        for recipe in self._phases(case, one, self.teacher_epochs, 1.0):
            seconds += seconds_of_fit(one, data, cross_entropy(data.labels), recipe, start.seed)
        one = copy.deepcopy(start.model)
        with self._distilling(one, other, blocks, data) as loss:
            for recipe in self._phases(case, one, self.epochs, 1.0):
                seconds += seconds_of_fit(one, data, loss, recipe, start.seed)
        return seconds


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
