"""Trigger patterns and how they are put on images: uint8 in, uint8 out, the input left as it was."""

import numpy as np
from jaxtyping import UInt8

from clipguard.seeds import Seed
from clipguard.types import Images


def stamp_patch(images: Images, size: int, value: int = 255) -> Images:
    """Return images whose bottom-right `size` x `size` pixels are overwritten with `value` (BadNets)."""
    out = np.array(images)
    _, h, w, _ = out.shape
    out[:, max(0, h - size) :, max(0, w - size) :] = value
    return out


def noise_pattern(height: int, width: int, seed: Seed) -> UInt8[np.ndarray, "h w 3"]:
    """Return a fixed pattern of uniform noise, 0..255."""
    return seed.numpy().integers(0, 256, (height, width, 3), dtype=np.uint8)


def blend(images: Images, pattern: UInt8[np.ndarray, "h w 3"], alpha: float) -> Images:
    """Return (1 - alpha) images + alpha pattern, rounded (Chen et al. 2017, "Blended")."""
    mixed = (1 - alpha) * images.astype(np.float32) + alpha * pattern.astype(np.float32)
    return np.rint(mixed).clip(0, 255).astype(np.uint8)


def add_sinusoid(images: Images, amplitude: float, frequency: float) -> Images:
    """Return clip(x + amplitude sin(2 pi j frequency / width)) along columns j (Barni et al. 2019, "SIG").

    Amplitude in grey levels 0..255, frequency in periods per image width.
    """
    width = images.shape[2]
    wave = amplitude * np.sin(2 * np.pi * np.arange(width) * frequency / width)
    moved: np.ndarray = np.rint(images.astype(np.float64) + wave[None, None, :, None])
    return moved.clip(0, 255).astype(np.uint8)
