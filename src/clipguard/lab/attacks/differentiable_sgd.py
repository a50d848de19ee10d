"""One step of a training as a function, differentiable in the labels that the step was taken with."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from clipguard.compute.recipes import Recipe
from clipguard.models.spec import Normalized

Weights = dict[str, Tensor]

_MOMENTUM = 0.9


@dataclass(frozen=True, slots=True)
class SgdState:
    """Where a training stood: weights by name, and SGD's momentum."""

    weights: Weights
    momentum: Weights

    def detached(self) -> "SgdState":
        """Return the same numbers without their history, the weights ready for gradients."""
        weights = {name: value.detach().clone().requires_grad_() for name, value in self.weights.items()}
        return SgdState(weights, {name: value.detach().clone() for name, value in self.momentum.items()})


def beginning(model: Normalized) -> SgdState:
    """Return the model's own weights and no momentum."""
    weights: Weights = dict(model.network.named_parameters())
    return SgdState(weights, {name: torch.zeros_like(value) for name, value in weights.items()}).detached()


def sgd_step(
    model: Normalized,
    start: SgdState,
    batch: UInt8[Tensor, "b 3 h w"],
    soft_labels: Float[Tensor, "b k"],
    recipe: Recipe,
) -> SgdState:
    """Return weights and momentum after one Nesterov step (0.9) on cross-entropy to the given soft labels.

    The result is differentiable in them where they need gradients.
    """
    logits = functional_call(model, {f"network.{k}": v for k, v in start.weights.items()}, (batch,))
    loss = -(soft_labels * F.log_softmax(logits, 1)).sum(1).mean()
    gradients = torch.autograd.grad(
        loss, list(start.weights.values()), create_graph=soft_labels.requires_grad
    )
    weights, momentum = {}, {}
    for (name, value), gradient in zip(start.weights.items(), gradients, strict=True):
        slope = gradient + recipe.weight_decay * value
        momentum[name] = _MOMENTUM * start.momentum[name] + slope
        weights[name] = value - recipe.lr * (slope + _MOMENTUM * momentum[name])
    return SgdState(weights, momentum)


def matching_loss(start: Weights, student: Weights, expert: Weights) -> Tensor:
    """Return ||student - expert||^2 / ||start - expert||^2 over all weights."""
    missed = sum(((student[name] - expert[name]) ** 2).sum() for name in start)
    moved = sum(((start[name] - expert[name]) ** 2).sum() for name in start)
    return torch.as_tensor(missed / moved)
