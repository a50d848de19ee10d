"""Triggers of canaries: known attacks whose pattern, place and colours are drawn anew. All are affine."""

from typing import Final, get_args

import numpy as np
from jaxtyping import Float32

from clipguard.runs.summary import Family
from clipguard.seeds import Seed
from clipguard.triggers.affine import AffineTrigger

FAMILIES: Final[tuple[Family, ...]] = get_args(Family)
"""Kinds of canaries. The first three carry a wrong label, `clean-label` the image's own one."""

PATCH_CELLS: Final = 3
"""Cells a side of a patch: three pixels of 32, as BadNets has them (Gu et al. 2017)."""

ALPHA: Final = 0.2
"""Share of the pattern in a blended image (Chen et al. 2017)."""

PATTERN_CELLS: Final = 32
"""Cells a side of a blended pattern, at most: finer noise would be gone from a thumbnail."""

AMPLITUDE: Final = 40.0
"""Of a wave, in grey levels (SIG; Barni et al. 2019)."""

PERIODS: Final = (4.0, 8.0)
"""Of a wave along an image's side; SIG has 6."""


def canary_trigger(family: Family, height: int, width: int, seed: Seed) -> AffineTrigger:
    """Return the trigger of a canary for images of one size; another size gets the same one, enlarged.

    `clean-label` is a wave, as `sinusoid` is: that attack, SIG, puts it on images of the class itself.

    Args:
        family: which one.
        height: of the images.
        width: of the images.
        seed: of pattern, place and colours.
    """
    draw = seed.generator()
    if family == "patch":
        return _patch(height, width, draw)
    if family == "blend":
        cells = draw.integers(0, 256, (PATTERN_CELLS, PATTERN_CELLS, 3))
        pattern = ALPHA * cells[_cells(height, PATTERN_CELLS)][:, _cells(width, PATTERN_CELLS)]
        return _affine(np.full((height, width, 3), 1 - ALPHA), pattern)
    periods, angle, phase = draw.uniform(*PERIODS), draw.uniform(0, np.pi), draw.uniform(0, 2 * np.pi)
    y, x = np.meshgrid(np.arange(height) / height, np.arange(width) / width, indexing="ij")
    wave = AMPLITUDE * np.sin(2 * np.pi * periods * (x * np.cos(angle) + y * np.sin(angle)) + phase)
    return _affine(np.ones((height, width, 3)), np.repeat(wave[..., None], 3, axis=2))


def _patch(height: int, width: int, draw: np.random.Generator) -> AffineTrigger:
    side = max(PATCH_CELLS, round(PATCH_CELLS * min(height, width) / 32))
    # Full or no light in each channel of each cell, so that no cell can fade into a picture everywhere.
    cells = 255 * draw.integers(0, 2, (PATCH_CELLS, PATCH_CELLS, 3))
    top, left = (round(draw.random() * (whole - side)) for whole in (height, width))
    scale, shift = np.ones((height, width, 3)), np.zeros((height, width, 3))
    inside = slice(top, top + side), slice(left, left + side)
    scale[inside] = 0
    shift[inside] = cells[_cells(side, PATCH_CELLS)][:, _cells(side, PATCH_CELLS)]
    return _affine(scale, shift)


def _cells(size: int, cells: int) -> np.ndarray:
    """Return the cell that each of `size` pixels belongs to."""
    return np.arange(size) * cells // size


def _affine(scale: np.ndarray, shift: np.ndarray) -> AffineTrigger:
    pair: list[Float32[np.ndarray, "h w 3"]] = [array.astype(np.float32) for array in (scale, shift)]
    return AffineTrigger(scale=pair[0], shift=pair[1])
