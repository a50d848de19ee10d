"""Sharpness-aware minimisation: the loss where an adversary moves the weights, as a loss for any training."""

from collections.abc import Iterable, Mapping
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from clipguard.compute.device import device_for
from clipguard.compute.precision import training_block
from clipguard.compute.training import LossFunction
from clipguard.models.spec import Normalized

SMALLEST: Final = 1e-12
"""Length of a gradient below which it has no direction."""


def at_weights(model: Normalized, weights: Mapping[str, Tensor], batch: Tensor) -> Float[Tensor, "b k"]:
    """Return the logits of a model with other weights, differentiable in them.

    The model keeps its own, and its buffers: BatchNorm's running statistics do not see the batch.
    """
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    with training_block(device_for(model), model, (batch.shape[-2], batch.shape[-1])):
        logits: Tensor = functional_call(model, {**buffers, **weights}, (batch,))
    return logits.float()


def sharpness_aware(model: Normalized, loss: LossFunction, rho: float) -> LossFunction:
    """Return the loss at the weights w + e, whose gradient in w is that of adaptive SAM (Kwon et al., 2021).

    e = rho w^2 g / || |w| g ||, with g the gradient of `loss` at w and one norm over all weights. A training
    by this loss takes two passes a step, and BatchNorm's running statistics follow the first one only.

    Args:
        model: the one that is trained.
        loss: what is to be low around the weights.
        rho: how far around.
    """

    def sharp(logits: Tensor, rows: Tensor, batch: Tensor) -> Tensor:
        weights = {name: value for name, value in model.named_parameters() if value.requires_grad}
        slopes = torch.autograd.grad(loss(logits, rows, batch), list(weights.values()), allow_unused=True)
        moves = adaptive_moves(weights.values(), slopes, rho)
        moved = {name: value + move for (name, value), move in zip(weights.items(), moves, strict=True)}
        return loss(at_weights(model, moved, batch), rows, batch)

    return sharp


def adaptive_moves(
    weights: Iterable[Tensor], slopes: Iterable[Tensor | None], rho: float
) -> list[Tensor | float]:
    """Return how the adversary of adaptive SAM moves each weight; 0 where the loss does not depend on it."""
    pairs = [(weight.detach(), slope) for weight, slope in zip(weights, slopes, strict=True)]
    lengths = [(weight * slope).norm() for weight, slope in pairs if slope is not None]
    scale = rho / torch.stack(lengths).norm().clamp_min(SMALLEST)
    return [0.0 if slope is None else scale * weight.square() * slope for weight, slope in pairs]
