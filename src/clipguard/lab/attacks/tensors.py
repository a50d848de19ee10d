"""Images as numbers in [0, 1] and back, in batches, for the nets that attacks train."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from clipguard.models.spec import Normalized
from clipguard.seeds import Seed
from clipguard.types import Images

Pixels = Float[Tensor, "b 3 h w"]
"""A batch of images in [0, 1]."""

_CHUNK, _AREA = 250, 32 * 32


def device_of(net: nn.Module) -> torch.device:
    """Return where the net's weights are."""
    return next(net.parameters()).device


def pixels(images: Images) -> Pixels:
    """Return images as numbers in [0, 1], channels first."""
    # Copied by numpy: torch warns of memory that it cannot write to, such as a run folder's memory map.
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255


def to_images(x: Pixels) -> Images:
    """Return the nearest images of 0..255."""
    rounded = (255 * x.detach()).round().clamp(0, 255).to(torch.uint8)
    return rounded.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def batches(n: int, size: int, seed: Seed) -> Iterator[Int64[np.ndarray, "b"]]:
    """Yield a permutation of 0..n-1 in batches that differ in length by at most one."""
    yield from np.array_split(seed.numpy().permutation(n), math.ceil(n / size))


def descend(loss: Tensor, *optimizers: torch.optim.Optimizer) -> None:
    """Take one step of every optimizer down the gradient of `loss`."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    for optimizer in optimizers:
        optimizer.step()


def chunk_of(h: int, w: int, most: int = _CHUNK) -> int:
    """Return how many images go through a net at once: `most` at 32 x 32 pixels, fewer of larger ones."""
    return min(most, max(1, most * _AREA // (h * w)))


def chunked(images: Images) -> Iterator[slice]:
    """Yield slices of images that go through a net together."""
    step = chunk_of(*images.shape[1:3])
    yield from (slice(start, start + step) for start in range(0, len(images), step))


def transformed(images: Images, change: Callable[[Pixels], Pixels], device: torch.device) -> Images:
    """Return every image after `change`, which needs no gradient."""
    if not len(images):
        return np.array(images)
    parts = (images[part] for part in chunked(images))
    with torch.no_grad():
        return np.concatenate([to_images(change(pixels(part).to(device))) for part in parts])


def logits_of(model: Normalized, x: Pixels) -> Float[Tensor, "b k"]:
    """Return the logits of images in [0, 1], differentiable in them, which whole grey levels are not."""
    scaled = (255 * x - model.mean) / model.std
    logits: Tensor = model.network(scaled.contiguous(memory_format=torch.channels_last))
    return logits
