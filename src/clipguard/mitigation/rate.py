"""The range test: how fast a net can be repaired without being damaged, from a few steps at each rate."""

import copy
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Int64
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clipguard.compute.training import LossFunction, Recipe, fit
from clipguard.errors import ClipguardError
from clipguard.mitigation.gauge import Gauge, cost
from clipguard.models.spec import Normalized
from clipguard.seeds import Seed
from clipguard.types import Rows

LADDER: Final = (1.0, 0.5, 0.25, 0.1)
"""Rates that are tried, from the highest down, as shares of it."""

ADAMW_RATE: Final = 1e-3
"""Highest rate for a net without BatchNorm: what transformers and ConvNeXt are fine-tuned with at most."""

STEPS: Final = 10
"""Of a trial. Mostly one or two rates are tried."""

TOLERANCE: Final = 0.01
TOLERANCE_OF_ERROR: Final = 0.2
"""Share of the trusted samples that a trial may cost, and share of those that the model has wrong already.

A net that was trained from scratch at a high rate moves about as far in the last steps of its own training.
One that was fine-tuned from good weights has almost no error, and by the same steps it gets several times as
much.
"""


class Trial(NamedTuple):
    """A rate, and the share of the trusted samples that some steps at it cost."""

    rate: float
    cost: float


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
) -> tuple[Recipe, list[Trial]]:
    """Return the recipe at the highest rate whose trial costs little, and the trials.

    The model stays as it is. It is the highest such rate, since a repair at a low one leaves the backdoor
    where it is. Where every trial costs much, it is the lowest. Without samples to measure on, the recipe
    stays as it is.
    """
    if not len(gauge.labels):
        return recipe, []
    some = _drawn(rows, STEPS * recipe.batch_size, seed)
    before, trials = gauge.read(model), list[Trial]()
    tolerance = TOLERANCE + TOLERANCE_OF_ERROR * (1 - before.accuracy)
    for share in LADDER:
        tried = replace(recipe, lr=recipe.lr * share)
        trial = copy.deepcopy(model)
        # All steps in one epoch, at the peak rate as soon as it is warm.
        short = replace(tried, epochs=1, constant=True)
        try:
            fit(trial, images, some, loss, short, seed)
            trials.append(Trial(tried.lr, cost(before, gauge.read(trial))[0]))
        except ClipguardError:
            # It diverged.
            trials.append(Trial(tried.lr, 1.0))
        if trials[-1].cost <= tolerance:
            break
    return replace(recipe, lr=trials[-1].rate), trials


def _drawn(rows: Int64[np.ndarray, "m"], count: int, seed: Seed) -> Int64[np.ndarray, "l"]:
    """Return so many rows, each as often as the others or once more."""
    draw = seed.child("rows").generator()
    return np.concatenate([draw.permutation(rows) for _ in range(-(-count // len(rows)))])[:count]
