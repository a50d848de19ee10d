"""Batched logits and features: one code path for arrays in memory and for sources of any size."""

from collections.abc import Callable
from typing import Final, TypeVar

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from clipguard.compute.device import array, computing_on, device_for, tensor
from clipguard.compute.lanes import go_on
from clipguard.errors import ClipguardError
from clipguard.models.features import head_of, inputs_of
from clipguard.models.spec import Normalized
from clipguard.types import Images, Rows

ON_GPU: Final = 8
"""How many times as large a batch is on a GPU, which small ones leave idle. Too large ones are halved."""

Values = TypeVar("Values")


def planes(images: Images) -> UInt8[Tensor, "n 3 h w"]:
    """Return images as a model takes them."""
    # A copy, since torch warns of arrays that cannot be written.
    return tensor(np.array(images)).permute(0, 3, 1, 2)


def piecewise(values: Callable[[slice], Values], n: int, size: int) -> list[Values]:
    """Return the values of n rows in pieces of `size`; of half as many where a GPU's memory is too small.

    Raises:
        ClipguardError: it does not hold one row.
    """
    out, start, size = [], 0, min(size, n)
    while start < n:
        go_on()
        try:
            out.append(values(slice(start, min(start + size, n))))
        except torch.OutOfMemoryError as error:
            if size == 1:
                why = "the GPU's memory does not hold the model and one image"
                raise ClipguardError(f"{why}: free some, or give another GPU or device cpu") from error
            size = max(1, size // 2)
            continue
        start += size
    return out


def classifier_logits(model: Normalized, images: Rows, batch_size: int = 250) -> Float32[np.ndarray, "n k"]:
    """Return the model's logits of all images, in evaluation mode, computed on the current device."""
    return _of_batches(model, lambda part: images[part], len(images), batch_size, lambda logits: logits)


def _of_batches(
    model: Normalized,
    batch: Callable[[slice], Images],
    n: int,
    batch_size: int,
    value: Callable[[Tensor], Tensor],
) -> Float32[np.ndarray, "n d"]:
    """Return what `value` makes of each batch's logits."""
    model.eval()
    device = device_for(model)

    def values(part: slice) -> Float32[np.ndarray, "_ d"]:
        return array(value(model(planes(batch(part)).to(device.torch))).float())

    with computing_on(device), torch.inference_mode(), device.autocast():
        return np.concatenate(piecewise(values, n, batch_size * (ON_GPU if device.kind == "cuda" else 1)))


def features(
    model: Normalized, images: Rows, rows: Int64[np.ndarray, "m"], batch_size: int = 250
) -> Float32[np.ndarray, "m d"]:
    """Return what the model's head is given of the images of `rows`, in evaluation mode.

    A model without a head gives its logits instead; `models.features.head_of` tells which it is.

    Raises:
        ClipguardError: NaN or Inf is among them.
    """
    device_for(model)
    head = head_of(model, planes(images[:1]))
    if head is None:
        result = _of_batches(
            model, lambda part: images[rows[part]], len(rows), batch_size, lambda logits: logits
        )
    else:
        with inputs_of(head) as inputs:
            # The last one, after a batch that had been too large.
            result = _of_batches(
                model, lambda part: images[rows[part]], len(rows), batch_size, lambda _: _taken(inputs)
            )
    if not np.isfinite(result).all():
        raise ClipguardError("the model's last layer is given NaN or Inf for some images: give another model")
    return result


def _taken(inputs: list[Tensor]) -> Tensor:
    """Return the last input, and forget all of them."""
    last = inputs[-1]
    inputs.clear()
    return last
