"""Views of the training images for the image tower, at the resolutions and qualities a guide meets later."""

import io
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from clipguard.seeds import Seed

Pixels = Float32[Tensor, "b h w 3"]
Views = Callable[[Int64[np.ndarray, "b"], np.random.Generator], Float32[Tensor, "b 3 s s"]]


def network_input(pixels: Pixels | UInt8[Tensor, "b h w 3"], side: int) -> Float32[Tensor, "b 3 s s"]:
    """Return 0..255 images at the network's size and in -1..1, channels-last."""
    resized = F.interpolate(pixels.permute(0, 3, 1, 2).float(), size=(side, side), mode="bicubic")
    return ((resized.clamp(0, 255) - 127.5) / 127.5).contiguous(memory_format=torch.channels_last)


def degraded_views(images: UInt8[np.ndarray, "n h w 3"], side: int) -> Views:
    """Return views for the first round: one random crop and lower resolution a batch."""

    def view(rows: Int64[np.ndarray, "b"], generator: np.random.Generator) -> Float32[Tensor, "b 3 s s"]:
        pixels = _crop(images[rows], 8, generator)
        resolution = int(generator.choice([24, 32, 32, 32, 40, 48, 64]))
        if resolution < min(images.shape[1:3]):
            pixels = _shrink(pixels, resolution, str(generator.choice(["area", "bilinear", "bicubic"])))
        return network_input(_jitter(pixels, generator), side)

    return view


def mixed_views(
    images: UInt8[np.ndarray, "n h w 3"], small: UInt8[np.ndarray, "n 32 32 3"], side: int
) -> Views:
    """Return views for the second round, four in a batch: JPEG at 32 pixels, shrunk twice, whole."""

    def view(rows: Int64[np.ndarray, "b"], generator: np.random.Generator) -> Float32[Tensor, "b 3 s s"]:
        fifth = len(rows) // 5
        jpeg, low, other, whole = np.split(rows, [fifth, 2 * fifth, 3 * fifth])
        mode = str(generator.choice(["area", "bilinear"]))
        resolution = int(generator.choice([24, 28, 40, 48, 56]))
        views = [
            _crop(small[jpeg], 3, generator),
            _shrink(_crop(images[low], 8, generator), 32, mode),
            _shrink(_crop(images[other], 8, generator), resolution, mode),
            _crop(images[whole], 10, generator),
        ]
        inputs = [network_input(_jitter(pixels, generator), side) for pixels in views if len(pixels)]
        return torch.cat(inputs).contiguous(memory_format=torch.channels_last)

    return view


def jpeg_copies(images: UInt8[np.ndarray, "n h w 3"], seed: Seed) -> UInt8[np.ndarray, "n 32 32 3"]:
    """Return the images at 32 pixels, each through a resampling filter and a JPEG quality of its own."""
    generator = seed.generator()
    filters = (Image.Resampling.BOX, Image.Resampling.LANCZOS, Image.Resampling.BICUBIC)
    copies = np.empty((len(images), 32, 32, 3), np.uint8)
    for index, image in enumerate(images):
        buffer = io.BytesIO()
        shrunk = Image.fromarray(image).resize((32, 32), filters[generator.integers(3)])
        shrunk.save(buffer, "JPEG", quality=int(generator.integers(70, 96)))
        copies[index] = np.asarray(Image.open(buffer))
    return copies


def _crop(images: UInt8[np.ndarray, "b h w 3"], most: int, generator: np.random.Generator) -> Pixels:
    cut = int(generator.integers(most + 1))
    top, left = generator.integers(cut + 1, size=2)
    height, width = images.shape[1] - cut, images.shape[2] - cut
    return torch.from_numpy(images[:, top : top + height, left : left + width]).float()


def _shrink(pixels: Pixels, side: int, mode: str) -> Pixels:
    resized: Pixels = F.interpolate(pixels.permute(0, 3, 1, 2), size=(side, side), mode=mode)
    return resized.permute(0, 2, 3, 1)


def _jitter(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    """Return the images, half of them mirrored, with a contrast and a tint of their own."""

    def bounded(*shape: int) -> Tensor:
        return torch.from_numpy(generator.standard_normal(shape).clip(-1, 1).astype(np.float32))

    mirrored = torch.from_numpy(generator.random(len(pixels)) < 0.5)
    pixels = torch.where(mirrored[:, None, None, None], pixels.flip(2), pixels)
    pixels = pixels * (1 + 0.2 * bounded(len(pixels), 1, 1, 1)) + 10 * bounded(len(pixels), 1, 1, 3)
    return pixels.clamp(0, 255)
