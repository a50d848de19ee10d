"""A student's step of SGD beside an expert's: how far apart they end and how that changes with the labels."""

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.autograd import forward_ad
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
    """Return weights and momentum after one Nesterov step (0.9) on cross-entropy to the given soft labels."""
    loss = -(soft_labels * _log_probabilities(model, start.weights, batch)).sum(1).mean()
    gradients = torch.autograd.grad(loss, list(start.weights.values()))
    weights, momentum = {}, {}
    for (name, value), gradient in zip(start.weights.items(), gradients, strict=True):
        slope = gradient + recipe.weight_decay * value
        momentum[name] = _MOMENTUM * start.momentum[name] + slope
        weights[name] = value - recipe.lr * (slope + _MOMENTUM * momentum[name])
    return SgdState(weights, momentum)


def matching_loss(start: Weights, student: Weights, expert: Weights) -> Tensor:
    """Return ||student - expert||^2 / ||start - expert||^2 over all weights."""
    return torch.as_tensor(_squared_distance(student, expert) / _squared_distance(start, expert))


def label_slope(
    model: Normalized,
    start: SgdState,
    batch: UInt8[Tensor, "b 3 h w"],
    student: Weights,
    expert: Weights,
    recipe: Recipe,
) -> Float[Tensor, "b k"]:
    """Return the slope of `matching_loss` in the soft labels of the student's step from `start` on `batch`.

    The student's weights are linear in them, so that the slope is how fast the log-probabilities of `start`
    change in the direction from expert to student. That takes one pass forward and no second derivative.
    """
    with torch.no_grad(), forward_ad.dual_level(), warnings.catch_warnings():
        # torch's own rules of forward derivatives use it.
        warnings.filterwarnings("ignore", message=r".torch\.jit\.script. is deprecated")
        moving = {
            name: forward_ad.make_dual(value.detach(), student[name] - expert[name])
            for name, value in start.weights.items()
        }
        change = forward_ad.unpack_dual(_log_probabilities(model, moving, batch)).tangent
        assert change is not None
        step = recipe.lr * (1 + _MOMENTUM) / len(batch)
        return torch.as_tensor(2 * step * change / _squared_distance(start.weights, expert))


def _log_probabilities(
    model: Normalized, weights: Weights, batch: UInt8[Tensor, "b 3 h w"]
) -> Float[Tensor, "b k"]:
    logits = functional_call(model, {f"network.{name}": value for name, value in weights.items()}, (batch,))
    return F.log_softmax(logits, 1)


def _squared_distance(one: Weights, other: Weights) -> Tensor:
    return torch.stack([((one[name] - other[name]) ** 2).sum() for name in one]).sum()
