"""MixMatch (Berthelot et al., NeurIPS 2019): a classifier learns from labelled and unlabelled samples."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from clipguard.compute.batches import batches_on
from clipguard.compute.device import Device, computing_on, device_for, tensor
from clipguard.compute.lanes import go_on
from clipguard.compute.precision import training_block
from clipguard.compute.recipes import Recipe
from clipguard.compute.training import augment
from clipguard.errors import ClipguardError
from clipguard.models.spec import Normalized
from clipguard.seeds import Seed
from clipguard.types import Rows

_AUGMENTED: Final = Recipe(epochs=1, lr=0.0)
"""Crops and flips, as everywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixMatchConfig:
    """How MixMatch trains.

    Attributes:
        batch_size: labelled samples a step, and as many unlabelled ones, of which two views are learnt.
        temperature: guessed labels are raised to the power of its inverse.
        beta: both parameters of the Beta distribution of how far samples are mixed.
        lr: of Adam.
    """

    batch_size: int = 64
    temperature: float = 0.5
    beta: float = 0.75
    lr: float = 0.002


@dataclass(slots=True)
class MixMatch:
    """A training that goes on from pass to pass, with other labelled samples in each.

    Attributes:
        model: is trained in place.
        images: of all samples.
        labels: of all samples.
        config: settings.
        optimizer: Adam on all of the model's weights.
    """

    model: Normalized
    images: Rows
    labels: Int64[np.ndarray, "n"]
    config: MixMatchConfig = field(default_factory=MixMatchConfig)
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        """Make the optimiser, after the model has come to its device."""
        device_for(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.config.lr)

    def train(
        self,
        labelled: Int64[np.ndarray, "p"],
        unlabelled: Int64[np.ndarray, "q"],
        weights: Sequence[float],
        seed: Seed,
    ) -> None:
        """Train for as many steps as there are weights, each of them that of the unlabelled samples' loss.

        Raises:
            ClipguardError: the loss is not finite, or there are no samples of one kind.
        """
        device, size = device_for(self.model), self.config.batch_size
        rows = [
            cycled(some, len(weights) * size, seed.child(name)).reshape(-1, size)
            for name, some in (("labelled", labelled), ("unlabelled", unlabelled))
        ]
        steps = list(np.concatenate(rows, axis=1))
        draw, crops = seed.child("mixing").generator(), seed.child("augment").torch()
        # As `fit` does: without float16, it only hands things through.
        scaler = torch.amp.GradScaler("cuda", init_scale=2.0**12, enabled=device.dtype == "float16")
        total = torch.zeros((), device=device.torch)
        self.model.train()
        with computing_on(device), seed.child("noise").torch_global(device.gpu):
            pictures = batches_on(device, self.images)(steps)
            for chosen, batch, weight in zip(steps, pictures, weights, strict=True):
                go_on()
                loss = self._loss(chosen[:size], batch, weight, draw, crops)
                self.optimizer.zero_grad(set_to_none=True)
                scaler.scale(loss).backward()
                scaler.step(self.optimizer)
                scaler.update()
                total += loss.detach()
        self.model.eval()
        if not bool(total.isfinite()):
            raise ClipguardError("MixMatch diverged: its loss is not finite; lower its learning rate")

    def _loss(
        self,
        labelled: Int64[np.ndarray, "b"],
        batch: UInt8[Tensor, "bb h w 3"],
        weight: float,
        draw: np.random.Generator,
        crops: torch.Generator,
    ) -> Float[Tensor, ""]:
        config, model, size = self.config, self.model, self.config.batch_size
        device = device_for(model)
        views = [augment(some, _AUGMENTED, crops) for some in (batch[:size], batch[size:], batch[size:])]
        inputs = [model.scaled(view.permute(0, 3, 1, 2)) for view in views]
        with torch.no_grad():
            guessed = sharpened([_logits(model, some, device) for some in inputs[1:]], config.temperature)
        given = tensor(self.labels[labelled]).to(device.torch)
        known = F.one_hot(given, guessed.shape[1]).float()
        share = float(draw.beta(config.beta, config.beta))
        order = tensor(draw.permutation(3 * size)).to(device.torch)
        share = max(share, 1 - share)
        logits = _logits(model, mixed(torch.cat(inputs), share, order), device)
        targets = mixed(torch.cat((known, guessed, guessed)), share, order)
        return mixmatch_loss(logits, targets, size, weight)


def _logits(model: Normalized, inputs: Tensor, device: Device) -> Float[Tensor, "b k"]:
    """Return the logits of images that are normalised already."""
    with training_block(device, model, (inputs.shape[-2], inputs.shape[-1])):
        logits: Tensor = model.network(inputs)
    return logits.float()


def cycled(rows: Int64[np.ndarray, "p"], count: int, seed: Seed) -> Int64[np.ndarray, "count"]:
    """Return so many of the rows in random order; all of them come again before one comes a third time."""
    if not len(rows):
        raise ClipguardError("MixMatch needs labelled and unlabelled samples, and one kind is missing")
    draw = seed.generator()
    rounds = [draw.permutation(rows) for _ in range(-(-count // len(rows)))]
    return np.concatenate(rounds)[:count]


def sharpened(logits: Sequence[Float[Tensor, "b k"]], temperature: float) -> Float[Tensor, "b k"]:
    """Return the mean posterior of some views, raised to the power 1 / temperature and scaled to sum 1."""
    mean = torch.stack([one.softmax(1) for one in logits]).mean(0)
    power = mean ** (1 / temperature)
    return power / power.sum(1, keepdim=True)


def mixed(values: Tensor, share: float, order: Tensor) -> Tensor:
    """Return each row mixed with the one that `order` puts in its place; `share` of it is the row itself."""
    return share * values + (1 - share) * values[order]


def mixmatch_loss(
    logits: Float[Tensor, "b k"], targets: Float[Tensor, "b k"], labelled: int, weight: float
) -> Float[Tensor, ""]:
    """Return cross-entropy of the first rows and, with its weight, the mean squared error of the others.

    The squared error is one of probabilities, as a mean over samples and classes.
    """
    first = -(targets[:labelled] * logits[:labelled].log_softmax(1)).sum(1).mean()
    others = (logits[labelled:].softmax(1) - targets[labelled:]).square().mean()
    return first + weight * others
