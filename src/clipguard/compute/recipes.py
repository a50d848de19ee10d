"""How nets are trained, as values alone: no torch here, so that the first line can count epochs at once."""

import math
from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a net is trained: everything but the data, the loss and the seed.

    Attributes:
        epochs: passes over the rows.
        batch_size: samples a step.
        optimizer: SGD with Nesterov momentum 0.9, SGD without momentum, Adam, or AdamW.
        lr: peak learning rate.
        weight_decay: L2 penalty on all weights.
        warmup: fraction of all steps with a linearly growing rate; after it, the rate falls linearly to 0.
        constant: keep the peak rate instead of letting it fall.
        crop: shift by up to this fraction of the image's height and width, zero-padded.
        flip: mirror every second image at random, left to right.
    """

    epochs: int
    batch_size: int = 128
    optimizer: Literal["sgd", "plain-sgd", "adam", "adamw"] = "sgd"
    lr: float
    weight_decay: float = 5e-4
    warmup: float = 0.2
    constant: bool = False
    crop: float = 0.125
    flip: bool = True


DEFAULT_RECIPE = Recipe(epochs=25, lr=0.1)
"""How a classifier is trained from scratch here (SGD, one cycle), also where it is the attack's victim."""

_SCHEDULES: Final[dict[str, tuple[float, bool]]] = {"constant": (0.0, True), "one-cycle": (0.2, False)}
"""Warm-up, and whether the learning rate stays at its peak."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallNetConfig:
    """How a small net is trained, without augmentation, and how its logits are taken.

    Attributes:
        architecture: as in `ModelSpec`.
        epochs: passes over the data.
        batch_size: samples a step.
        optimizer: as in `Recipe`.
        lr: peak learning rate.
        schedule: `constant`, or `one-cycle` with a fifth of the steps to warm up.
        runs: independent trainings whose logits are averaged.
        folds: 1 scores samples by a net that was trained on them; f >= 2 trains f nets, each on all folds but
            one, and scores every sample by the net that was trained without it.
        fewest_steps: a small data set gets more epochs, until a net has taken this many steps: fewer do not
            show a trigger, whatever the number of passes.
    """

    architecture: str = "preactresnet18-16"
    epochs: int
    batch_size: int
    optimizer: Literal["sgd", "plain-sgd", "adam"]
    lr: float
    schedule: Literal["constant", "one-cycle"]
    runs: int = 1
    folds: int = 1
    fewest_steps: int = 0

    def total_epochs(self, trainable: int) -> int:
        """Return the epochs that each net takes, for a number of trainable samples."""
        of_a_net = trainable if self.folds == 1 else trainable * (self.folds - 1) // self.folds
        steps = max(1, math.ceil(of_a_net / self.batch_size))
        return max(self.epochs, math.ceil(self.fewest_steps / steps))

    def recipe(self, trainable: int) -> Recipe:
        """Return the training of each net, for a number of trainable samples."""
        warmup, constant = _SCHEDULES[self.schedule]
        return Recipe(
            epochs=self.total_epochs(trainable),
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            lr=self.lr,
            warmup=warmup,
            constant=constant,
            crop=0.0,
            flip=False,
        )
