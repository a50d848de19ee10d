"""Dropout inside a net that has none, whatever its architecture: after its residual sums."""

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from clipguard.models.spec import Normalized

SUMS: Final = frozenset(
    (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__)
)

NONLINEAR: Final = frozenset(
    getattr(where, name)
    for where in (F, torch, Tensor)
    for name in (
        *("relu", "relu_", "relu6", "gelu", "silu", "mish", "elu", "celu", "selu", "leaky_relu", "prelu"),
        *("hardtanh", "hardswish", "softplus", "softsign", "tanh", "tanh_", "sigmoid", "sigmoid_"),
    )
    if hasattr(where, name)
)


class Dropout(TorchFunctionMode):
    """While it is entered, the results of certain operations of this thread go through dropout.

    A residual sum adds two tensors of one shape that have places or tokens, neither of them a parameter. A
    net without any has dropout after its non-linear functions instead.

    Attributes:
        count: operations whose results went through dropout.
    """

    def __init__(self, rate: float, *, sums: bool) -> None:
        super().__init__()
        self.rate, self.sums, self.count = rate, sums, 0

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return the result of the operation, through dropout where it is one of those."""
        result = function(*args, **(kwargs or {}))
        if not (_is_residual(function, args) if self.sums else function in NONLINEAR):
            return result
        self.count += 1
        # In place, as some nets add in place and leave the result of the call alone.
        return F.dropout(result, self.rate, training=True, inplace=True)


def has_residual_sums(model: Normalized, images: Tensor) -> bool:
    """Return whether a model adds tensors of places or tokens on the way to its logits of two images."""
    model.eval()
    with torch.inference_mode(), Dropout(0.0, sums=True) as dropout:
        model(images.to(model.mean.device))
    return bool(dropout.count)


def _is_residual(function: Any, args: tuple[Any, ...]) -> bool:
    if function not in SUMS or len(args) < 2:
        return False
    left, right = args[:2]
    if not (isinstance(left, Tensor) and isinstance(right, Tensor)):
        return False
    if isinstance(left, nn.Parameter) or isinstance(right, nn.Parameter):
        return False
    return bool(left.shape == right.shape and left.ndim >= 3)
