"""Images as numbers in [0, 1] and back, in batches, for the nets that attacks train."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from clipguard.compute.device import array, here
from clipguard.compute.inference import planes
from clipguard.lab.attacks.protocol import Rows
from clipguard.seeds import Seed
from clipguard.types import Images

Pixels = Float[Tensor, "b 3 h w"]
"""A batch of images in [0, 1]."""

_CHUNK, _AREA = 250, 32 * 32


def pixels(images: Images) -> Pixels:
    """Return images as numbers in [0, 1], channels first, on the current device."""
    return planes(images).to(here()).float() / 255


def to_images(x: Pixels) -> Images:
    """Return the nearest images of 0..255."""
    rounded = (255 * x.detach()).round().clamp(0, 255).to(torch.uint8)
    return array(rounded.permute(0, 2, 3, 1).contiguous())


def batches(n: int, size: int, seed: Seed) -> Iterator[Rows]:
    """Yield a permutation of 0..n-1 in batches that differ in length by at most one."""
    yield from np.array_split(seed.generator().permutation(n), math.ceil(n / size))


def descend(loss: Tensor, *optimizers: torch.optim.Optimizer) -> None:
    """Take one step of every optimizer down the gradient of `loss`."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    for optimizer in optimizers:
        optimizer.step()


def chunk_of(images: Images, most: int = _CHUNK) -> int:
    """Return how many images go through a net at once: `most` at 32 x 32 pixels, fewer of larger ones."""
    area = int(np.prod(images.shape[1:3]))
    return min(most, max(1, most * _AREA // area))


def transformed(change: Callable[..., Pixels], *images: Images) -> Images:
    """Return `change` of every image, which needs no gradient; of several sets, of those in one row."""
    out, step = np.array(images[0]), chunk_of(images[0])
    for start in range(0, len(out), step):
        part = slice(start, start + step)
        with torch.no_grad():
            out[part] = to_images(change(*(pixels(some[part]) for some in images)))
    return out
