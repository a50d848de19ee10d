"""The range test: how fast a net can be repaired without being damaged, from a few steps at each rate."""

import copy
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Int64
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clipguard.compute.batch_norm import with_own_statistics
from clipguard.compute.recipes import Recipe
from clipguard.compute.training import LossFunction, fit
from clipguard.errors import ClipguardError
from clipguard.mitigation.gauge import Gauge
from clipguard.models.spec import Normalized
from clipguard.seeds import Seed
from clipguard.types import Rows

LADDER: Final = (1.0, 0.5, 0.25, 0.1)
"""Rates that are tried until one does no damage, as shares of the highest."""

ADAMW_RATE: Final = 1e-3
"""Highest rate for a net without BatchNorm: what transformers and ConvNeXt are fine-tuned with at most."""

STEPS: Final = 10
"""Of a trial."""

KEPT: Final = 0.7
"""Share of the trusted samples' accuracy that a trial must keep; it is won back where the trigger is gone.

Nets from scratch keep 0.85 to 0.95 at the rate that repairs them best. What is damaged keeps less than half.
"""


class TestedRate(NamedTuple):
    """A rate, and what trusted samples say after some steps at it.

    Attributes:
        rate: learning rate.
        accuracy: share that is given its label; 0 where the trial diverged.
    """

    rate: float
    accuracy: float


def fitting_optimizer(model: nn.Module, recipe: Recipe) -> Recipe:
    """Return the recipe as it suits the kind of net: without BatchNorm, SGD takes no rate for all layers."""
    if recipe.optimizer != "sgd" or any(isinstance(module, _BatchNorm) for module in model.modules()):
        return recipe
    return replace(recipe, optimizer="adamw", lr=ADAMW_RATE)


def suited_recipe(  # noqa: PLR0913  # what is trained on, how, and what measures it: no two belong together
    model: Normalized,
    images: Rows,
    rows: Int64[np.ndarray, "m"],
    loss: LossFunction,
    recipe: Recipe,
    gauge: Gauge,
    seed: Seed,
) -> tuple[Recipe, list[TestedRate]]:
    """Return the recipe at the highest rate that does no damage, and the trials; the model stays as it is.

    A repair at a lower one leaves more of the backdoor, and saves no accuracy on the whole. Where every trial
    does damage, it is the lowest. Without samples to measure on, the recipe stays as it is.
    """
    if not len(gauge.labels):
        return recipe, []
    some = _drawn(rows, STEPS * recipe.batch_size, seed)

    def tried(rate: float) -> TestedRate:
        # One epoch, at the peak rate as soon as it is warm.
        short, trial = replace(recipe, lr=rate, epochs=1, constant=True), copy.deepcopy(model)
        try:
            fit(trial, images, some, loss, short, seed)
        except ClipguardError:
            # It diverged.
            return TestedRate(rate, 0.0)
        # By BatchNorm's statistics of before, which belong to other activations, every rate would seem to
        # destroy some nets.
        return TestedRate(rate, gauge.read(with_own_statistics(trial, images, some)).accuracy)

    least, trials = KEPT * gauge.read(model).accuracy, list[TestedRate]()
    for share in LADDER:
        trials.append(tried(recipe.lr * share))
        if trials[-1].accuracy >= least:
            break
    return replace(recipe, lr=trials[-1].rate), trials


def _drawn(rows: Int64[np.ndarray, "m"], count: int, seed: Seed) -> Int64[np.ndarray, "l"]:
    """Return so many rows, each as often as the others or once more."""
    draw = seed.child("rows").generator()
    return np.concatenate([draw.permutation(rows) for _ in range(-(-count // len(rows)))])[:count]
