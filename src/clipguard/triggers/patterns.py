"""Trigger patterns and how they are applied to images: uint8 in, uint8 out, the input unchanged."""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from scipy.fft import idctn
from torch.nn import functional as F

from clipguard.compute.device import array, tensor
from clipguard.errors import ClipguardError
from clipguard.seeds import Seed
from clipguard.types import Images


def paste_patch(images: Images, size: int, value: int = 255) -> Images:
    """Return images whose bottom-right `size` x `size` pixels are overwritten with `value` (BadNets)."""
    out = np.array(images)
    _, h, w, _ = out.shape
    out[:, max(0, h - size) :, max(0, w - size) :] = value
    return out


def noise_pattern(height: int, width: int, seed: Seed) -> UInt8[np.ndarray, "h w 3"]:
    """Return a fixed pattern of uniform noise, 0..255."""
    return seed.generator().integers(0, 256, (height, width, 3), dtype=np.uint8)


def blend(
    images: Images, pattern: UInt8[np.ndarray, "h w 3"], alpha: float | Float32[np.ndarray, "#n h w"]
) -> Images:
    """Return (1 - alpha) images + alpha pattern, rounded (Chen et al. 2017, "Blended").

    Alpha is one number, or one for each pixel of all images or of each.
    """
    opacity = alpha[..., None] if isinstance(alpha, np.ndarray) else alpha
    mixed = (1 - opacity) * images.astype(np.float32) + opacity * pattern.astype(np.float32)
    return np.rint(mixed).clip(0, 255).astype(np.uint8)


def add_sinusoid(images: Images, amplitude: float, frequency: float) -> Images:
    """Return clip(x + amplitude sin(2 pi j frequency / width)) along columns j (Barni et al. 2019, "SIG").

    Amplitude in grey levels 0..255, frequency in periods per image width.
    """
    width = images.shape[2]
    wave = amplitude * np.sin(2 * np.pi * np.arange(width) * frequency / width)
    added: np.ndarray = np.rint(images.astype(np.float64) + wave[None, None, :, None])
    return added.clip(0, 255).astype(np.uint8)


def quantise(images: Images, levels: int) -> Images:
    """Return round(x / 255 (levels - 1)) / (levels - 1) 255, itself rounded (Wang et al. 2022, "BPP").

    Raises:
        ClipguardError: there are fewer than two levels.
    """
    if levels < 2:
        raise ClipguardError(f"{levels} levels of brightness are too few for a picture: give 2 or more")
    steps = np.rint(np.arange(256) / 255 * (levels - 1)) / (levels - 1) * 255
    quantised: np.ndarray = np.rint(steps).astype(np.uint8)[images]
    return quantised


FREQUENCIES: Final = (15, 31)
"""Rows and columns of the 2-D DCT, of 32, at which CTRL adds its magnitude."""


def chroma_waves(height: int, width: int, magnitude: float) -> Float32[np.ndarray, "h w 3"]:
    """Return the pattern that adds `magnitude` to U and V at two frequencies of the whole image's 2-D DCT.

    Both the transform and RGB -> YUV are linear, so this is the same as adding the pattern to the pixels
    (Li et al. 2023, "CTRL"). At other sizes than 32 x 32, a frequency keeps its share of the highest one, and
    the magnitude grows with the root of the area, so that the change of a pixel stays as large.
    """
    spectrum = np.zeros((height, width))
    for place in FREQUENCIES:
        spectrum[(place + 1) * height // 32 - 1, (place + 1) * width // 32 - 1] = magnitude
    wave = idctn(spectrum * np.sqrt(height * width) / 32, norm="ortho")
    # Of Y = 0.299 R + 0.587 G + 0.114 B, U = 0.492 (B - Y) and V = 0.877 (R - Y), only U and V move.
    red, blue = 1 / 0.877, 1 / 0.492
    green = -(0.299 * red + 0.114 * blue) / 0.587
    pattern: Float32[np.ndarray, "h w 3"] = (wave[..., None] * (red, green, blue)).astype(np.float32)
    return pattern


def add_pattern(images: Images, pattern: Float32[np.ndarray, "h w 3"]) -> Images:
    """Return images + pattern, rounded, within 0..255."""
    added: np.ndarray = np.rint(images + pattern)
    return added.clip(0, 255).astype(np.uint8)


def warp_field(height: int, width: int, grid: int, seed: Seed) -> Float32[np.ndarray, "h w 2"]:
    """Return a smooth field of (x, y) shifts whose control points are 1 large on average ("WaNet").

    U(-1, 1) on `grid` x `grid` points, over its mean absolute value, bicubic to the image's size, corners
    aligned (Nguyen and Tran 2021).
    """
    points = seed.generator().uniform(-1, 1, (1, 2, grid, grid))
    points /= np.abs(points).mean()
    field = F.interpolate(tensor(points).float(), size=(height, width), mode="bicubic", align_corners=True)
    return np.ascontiguousarray(array(field[0].permute(1, 2, 0)))


AT_ONCE: Final = 1024
"""Images of 32 x 32 pixels that are warped in one go; larger ones accordingly fewer."""


def warp(
    images: Images, field: Float32[np.ndarray, "h w 2"], strength: float, jitter: Seed | None = None
) -> Images:
    """Return images sampled at identity + strength field / side, bilinear, corners aligned ("WaNet").

    Coordinates run over [-1, 1] along each side and are clamped there; each axis is divided by its own side
    (the published code knows square images only). With `jitter`, U(-1, 1) / side is added for each pixel of
    each image: the cover samples' noise.
    """
    n, h, w, _ = images.shape
    sides = np.array([w, h], dtype=np.float32)
    y, x = np.meshgrid(np.linspace(-1, 1, h), np.linspace(-1, 1, w), indexing="ij")
    fixed = np.stack([x, y], axis=-1).astype(np.float32) + np.float32(strength) * field / sides
    draw = None if jitter is None else jitter.generator()
    out = np.empty_like(images)
    step = max(1, AT_ONCE * 32 * 32 // (h * w))
    for begin in range(0, n, step):
        part = images[begin : begin + step]
        grid = np.broadcast_to(fixed, (len(part), h, w, 2))
        if draw is not None:
            grid = grid + draw.uniform(-1, 1, grid.shape).astype(np.float32) / sides
        out[begin : begin + step] = _sampled(part, grid.clip(-1, 1))
    return out


def _sampled(images: Images, grid: Float32[np.ndarray, "n h w 2"]) -> Images:
    # A copy, since torch warns of arrays that cannot be written.
    planes = tensor(np.array(images)).permute(0, 3, 1, 2).float()
    sampled = F.grid_sample(planes, tensor(grid), align_corners=True)
    return array(sampled.round().clamp(0, 255).byte().permute(0, 2, 3, 1))


def piece_masks(n: int, height: int, width: int, pieces: int, seed: Seed) -> Bool[np.ndarray, "n h w"]:
    """Return for each of n images a mask of half of its `pieces` x `pieces` pieces, drawn at random."""
    number = pieces**2
    chosen = seed.generator().permuted(np.tile(np.arange(number) < number // 2, (n, 1)), axis=1)
    row, column = np.arange(height) * pieces // height, np.arange(width) * pieces // width
    return chosen[:, row[:, None] * pieces + column]


def corners(height: int, width: int) -> Bool[np.ndarray, "4 h w"]:
    """Return the masks of four square corners, a quarter of the shorter side wide."""
    side = max(1, min(height, width) // 4)
    row, column = np.arange(height)[:, None], np.arange(width)
    top, left = row < side, column < side
    bottom, right = row >= height - side, column >= width - side
    return np.stack([top & left, top & right, bottom & left, bottom & right])
