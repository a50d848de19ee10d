"""Batches of images for training, on the device in time: it is not to wait for the next one."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from clipguard.compute.device import Device, tensor
from clipguard.compute.lanes import ordered_map
from clipguard.types import Rows

RESIDENT: Final = 2 * 2**30
"""Bytes; images that take no more lie on the GPU for the whole training."""

_AHEAD: Final = 3
"""Batches in the making, or waiting, while the GPU is busy."""

_UPLOAD: Final = 2**26
"""Bytes that go to the GPU at once."""

Chosen = Int64[np.ndarray, "_"]

Batches = Callable[[Sequence[Chosen]], Iterator[UInt8[Tensor, "_ h w 3"]]]
"""(rows of each batch) -> a copy of their images on the device, batch by batch."""


def batches_on(device: Device, images: Rows) -> Batches:
    """Return what gives batches of `images` on the device."""
    if device.kind == "cpu":
        return lambda batches: (_read(images, rows) for rows in batches)
    resident = _uploaded(images, device.torch) if math.prod(images.shape) <= RESIDENT else None
    if resident is None:
        return partial(_streamed, images, device.torch)
    return lambda batches: (resident[tensor(rows).to(device.torch)] for rows in batches)


def _read(images: Rows, rows: Chosen) -> UInt8[Tensor, "_ h w 3"]:
    # A copy of the chosen rows, wherever they lie.
    return tensor(images[rows])


def _streamed(
    images: Rows, device: torch.device, batches: Sequence[Chosen]
) -> Iterator[UInt8[Tensor, "_ h w 3"]]:
    def pinned(rows: Chosen) -> UInt8[Tensor, "_ h w 3"]:
        return _read(images, rows).pin_memory()

    for batch in ordered_map(pinned, batches, 2, _AHEAD):
        yield batch.to(device, non_blocking=True)


def _uploaded(images: Rows, device: torch.device) -> UInt8[Tensor, "n h w 3"] | None:
    """Return all images on the device, or None where its memory does not hold them."""
    try:
        out = torch.empty(tuple(images.shape), dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError:
        return None
    step = max(1, _UPLOAD // max(1, math.prod(images.shape[1:])))
    for start in range(0, len(images), step):
        # Copied: torch warns of arrays that it cannot write to.
        out[start : start + step] = tensor(np.array(images[start : start + step]))
    return out
