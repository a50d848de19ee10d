"""One rule for the features of a classifier: what its head, the last linear layer, is given of an image."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from clipguard.models.spec import Normalized

Head = nn.Linear | nn.Conv2d
"""A linear layer, or a convolution that looks at one place at a time."""


@contextmanager
def inputs_of(layer: Head) -> Iterator[list[Tensor]]:
    """Give a list that collects what a head is given of each batch inside the block, one vector an image."""
    inputs: list[Tensor] = []

    def note(layer: Head, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        inputs.append(_of_an_image(layer, _first(given, named)))

    hook = layer.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield inputs
    finally:
        hook.remove()


def head_of(model: Normalized, image: UInt8[Tensor, "1 3 h w"]) -> Head | None:
    """Return the linear layer that makes the logits of one vector an image, if any.

    Where a net looks at several places of an image, or at several tokens, the mean of them is its vector:
    the mean of the layer's outputs has to be the logits. Where two heads share the work, as in distilled
    transformers, it is the last one.

    Args:
        model: any classifier; it is left in evaluation mode.
        image: one image of a size that the model takes.
    """
    calls: list[tuple[Head, Tensor]] = []

    def note(layer: Head, _: tuple[Any, ...], output: Tensor) -> None:
        calls.append((layer, _of_an_image(layer, output).float()))

    model.eval()
    with ExitStack() as hooks, torch.inference_mode():
        for module in model.network.modules():
            if _is_linear(module):
                hooks.callback(module.register_forward_hook(note).remove)
        logits = model(image.to(model.mean.device)).float()
    layers = [layer for layer, _ in calls]
    # One that is asked twice has no single input.
    ends = [(layer, out) for layer, out in calls if layers.count(layer) == 1 and out.shape == logits.shape]
    heads = [layer for layer, output in ends if torch.allclose(output, logits, atol=1e-6)]
    shared = [layer for layer, _ in ends[-1:]] if len(ends) == 2 else []
    return next(iter([*heads, *shared]), None)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))


def _first(given: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    first: Tensor = given[0] if given else named["input"]
    return first


def _of_an_image(layer: Head, values: Tensor) -> Float[Tensor, "n d"]:
    """Return the mean over places or tokens of what a layer is given or gives."""
    channels = values.movedim(1, -1) if isinstance(layer, nn.Conv2d) else values
    return channels.flatten(1, -2).mean(1) if channels.ndim > 2 else channels
