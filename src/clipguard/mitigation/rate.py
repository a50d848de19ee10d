"""The range test: how fast a net can be repaired without being damaged, from a few steps at each rate."""

import copy
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Int64
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from clipguard.compute.recipes import Recipe
from clipguard.compute.training import LossFunction, fit
from clipguard.errors import ClipguardError
from clipguard.mitigation.gauge import MOST_NATS, Gauge
from clipguard.models.spec import Normalized
from clipguard.seeds import Seed
from clipguard.types import Rows

LADDER: Final = (1.0, 0.5, 0.25, 0.1)
"""Rates that are tried, from the highest down, as shares of it."""

ADAMW_RATE: Final = 1e-3
"""Highest rate for a net without BatchNorm: what transformers and ConvNeXt are fine-tuned with at most."""

STEPS: Final = 10
"""Of a trial. Mostly one or two rates are tried."""

QUICK: Final = 0.5
"""Share of each batch in BatchNorm's running statistics during a trial.

With the usual tenth, they still are those of the weights before the trial when it ends. On a net whose
activations have moved they are so wrong that every rate seems to destroy it.
"""

FACTOR: Final = 1.5
NATS: Final = 0.005
"""A trial may raise the loss of the trusted samples to so many times what it was, and by so many nats.

A net that was trained from scratch at a high rate has a loss that the last steps of its training moved by as
much. One that was fine-tuned from good weights has almost none, and the same steps make it several times as
large, long before its accuracy shows it.
"""


class TestedRate(NamedTuple):
    """A rate, and the loss of the trusted samples after some steps at it."""

    rate: float
    loss: float


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
    """Return the recipe at the highest rate whose trial does little damage, and the trials.

    The model stays as it is. It is the highest such rate, since a repair at a low one leaves the backdoor
    where it is. Where every trial does much, it is the lowest. Without samples to measure on, the recipe
    stays as it is.
    """
    if not len(gauge.labels):
        return recipe, []
    some = _drawn(rows, STEPS * recipe.batch_size, seed)
    before, trials = gauge.read(model), list[TestedRate]()
    most = FACTOR * before.loss + NATS
    for share in LADDER:
        tried = replace(recipe, lr=recipe.lr * share)
        trial = _following_quickly(model)
        # All steps in one epoch, at the peak rate as soon as it is warm.
        short = replace(tried, epochs=1, constant=True)
        try:
            fit(trial, images, some, loss, short, seed)
            trials.append(TestedRate(tried.lr, gauge.read(trial).loss))
        except ClipguardError:
            # It diverged.
            trials.append(TestedRate(tried.lr, MOST_NATS))
        if trials[-1].loss <= most:
            break
    return replace(recipe, lr=trials[-1].rate), trials


def _following_quickly(model: Normalized) -> Normalized:
    """Return a copy whose running statistics are those of its last batches."""
    trial = copy.deepcopy(model)
    for module in trial.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = QUICK
    return trial


def _drawn(rows: Int64[np.ndarray, "m"], count: int, seed: Seed) -> Int64[np.ndarray, "l"]:
    """Return so many rows, each as often as the others or once more."""
    draw = seed.child("rows").generator()
    return np.concatenate([draw.permutation(rows) for _ in range(-(-count // len(rows)))])[:count]
