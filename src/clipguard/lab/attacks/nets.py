"""What the helper nets of several attacks share: a small U-Net, batches, and pixels as numbers in [0, 1]."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from clipguard.models.spec import Normalized
from clipguard.seeds import Seed
from clipguard.types import Images

Pixels = Float[Tensor, "b 3 h w"]
"""A batch of images in [0, 1]."""

_CHUNK, _AREA = 250, 32 * 32


def _layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    # Normalised within each image: what is made of an image must not depend on the rest of its batch.
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(4, outputs), nn.ReLU(inplace=True)
    )


class UNet(nn.Module):
    """Image to image at one size, after Ronneberger et al. 2015: two halvings, with skips; `width` from 4."""

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        self.enter = _layer(inputs, width)
        self.down_half = nn.Sequential(_layer(width, 2 * width, 2), _layer(2 * width, 2 * width))
        self.down_quarter = nn.Sequential(_layer(2 * width, 4 * width, 2), _layer(4 * width, 4 * width))
        self.up_half = _layer(6 * width, 2 * width)
        self.up_full = _layer(3 * width, width)
        self.leave = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        """Return unbounded values; any size fits, since the edges are repeated up to a multiple of four."""
        h, w = x.shape[2:]
        padded = F.pad(x, (0, -w % 4, 0, -h % 4), mode="replicate")
        full = self.enter(padded.contiguous(memory_format=torch.channels_last))
        half = self.down_half(full)
        deep = F.interpolate(self.down_quarter(half), scale_factor=2)
        half = F.interpolate(self.up_half(torch.cat((deep, half), 1)), scale_factor=2)
        out: Tensor = self.leave(self.up_full(torch.cat((half, full), 1)))
        return out[:, :, :h, :w]


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
