"""Batched logits and embeddings: one code path for arrays in memory and for sources of any size."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from clipguard.errors import ClipguardError
from clipguard.models.spec import Normalized
from clipguard.types import Images

if TYPE_CHECKING:
    pass

_BATCH = 64


def thread_count() -> int:
    """Return how many threads of the processor compute; results depend on their number."""
    return torch.get_num_threads()


def classifier_logits(model: Normalized, images: Images, batch_size: int = 250) -> Float32[np.ndarray, "n k"]:
    """Return the model's logits of all images, in evaluation mode."""
    model.eval()
    device = model.mean.device
    out = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(np.array(images[start : start + batch_size]))
            out.append(model(batch.permute(0, 3, 1, 2).to(device)).float().cpu().numpy())
    return np.concatenate(out)


def activations(
    model: Normalized, images: Images, rows: Int64[np.ndarray, "m"], batch_size: int = 250
) -> Float32[np.ndarray, "m d"]:
    """Return what the model's last layer is given of the images of `rows`, in evaluation mode.

    That is a linear layer whose output is the logits. A model without one gives its logits instead.

    Raises:
        ClipguardError: NaN or Inf is among them.
    """
    given: list[Tensor] = []
    head = _head(model, images[:1])

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        given.append(inputs[0].float().cpu())

    hooks = [] if head is None else [head.register_forward_pre_hook(keep)]
    try:
        starts = range(0, len(rows), batch_size)
        logits = [classifier_logits(model, images[rows[i : i + batch_size]]) for i in starts]
    finally:
        for hook in hooks:
            hook.remove()
    found: Float32[np.ndarray, "m d"] = np.concatenate([values.numpy() for values in given] or logits)
    if not np.isfinite(found).all():
        raise ClipguardError("the model's last layer is given NaN or Inf for some images: give another model")
    return found


def _head(model: Normalized, image: Images) -> nn.Linear | None:
    """Return the linear layer that is given one vector of an image and makes the logits of it, if any."""
    made: list[tuple[nn.Linear, int, Tensor]] = []

    def note(layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        made.append((layer, len(inputs), output))

    linear = [module for module in model.network.modules() if isinstance(module, nn.Linear)]
    hooks = [layer.register_forward_hook(note) for layer in linear]
    try:
        logits = classifier_logits(model, image)
    finally:
        for hook in hooks:
            hook.remove()
    called = [layer for layer, *_ in made]
    heads = [
        layer
        for layer, inputs, output in made
        # One that is given its input by name does not show it to a hook.
        if inputs and called.count(layer) == 1 and np.array_equal(output.float().cpu().numpy(), logits)
    ]
    return heads[0] if heads else None
