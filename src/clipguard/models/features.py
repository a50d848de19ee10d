"""One rule for the features of a classifier: what its head, the last linear layer, is given of an image."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from clipguard.models.spec import Normalized


@contextmanager
def inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Give a list that collects what the layer is given of each batch inside the block."""
    inputs: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    try:
        yield inputs
    finally:
        hook.remove()


def head_of(model: Normalized, image: UInt8[Tensor, "1 3 h w"]) -> nn.Linear | None:
    """Return the linear layer that is given one vector of an image and makes the logits of it, if any.

    Args:
        model: any classifier; it is left in evaluation mode.
        image: one image of a size that the model takes.
    """
    calls: list[tuple[nn.Linear, int, Tensor]] = []

    def note(layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((layer, len(inputs), output))

    model.eval()
    with ExitStack() as hooks, torch.inference_mode():
        for module in model.network.modules():
            if isinstance(module, nn.Linear):
                hooks.callback(module.register_forward_hook(note).remove)
        logits = model(image.to(model.mean.device))
    layers = [layer for layer, *_ in calls]
    heads = [
        layer
        for layer, inputs, output in calls
        # One that is given its input by name does not show it to a hook.
        if inputs and layers.count(layer) == 1 and torch.equal(output.float(), logits.float())
    ]
    return heads[0] if heads else None
