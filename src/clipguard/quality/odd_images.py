"""Odd images: blank, dark, bright, or of an odd shape or size.

Bounds of brightness and of the aspect ratio are the defaults of CleanVision. What many images of a data set
share is not odd there, and is not listed.
"""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64

from clipguard.quality.issues import Issues, issues
from clipguard.types import Rows, chunks

DARK: Final = 0.32
"""Brightness (0 to 1) that 99 % of a dark image stay below."""

BRIGHT: Final = 0.95
"""Brightness that 95 % of a bright image exceed."""

BLANK: Final = 0.03
"""Range of brightness, from the 1 % to the 99 % quantile, of a blank image: eight grey levels."""

ODD_RATIO: Final = 0.35
"""Ratio of an odd aspect ratio to the median one, or its inverse."""

ODD_SIDE: Final = 0.5
"""Ratio of an odd size to the median one, or its inverse; the size is the root of the area."""

FENCE: Final = 3.0
"""Interquartile ranges beyond the quartiles from which on a value is odd (Tukey 1977: far out)."""

COMMON: Final = 0.1
"""Share of images from which on what they have in common is not odd."""


def brightness(images: Rows) -> Float64[np.ndarray, "n 3"]:
    """Return the 1, 5 and 99 % quantiles of the perceived brightness of each image, in 0 to 1."""
    weights = np.array([0.241, 0.691, 0.068], np.float32)
    parts = [np.zeros((0, 3))]
    for part in chunks(len(images), 256):
        squares = np.asarray(images[part], np.float32) ** 2 @ weights
        values = np.sqrt(squares).reshape(len(squares), -1) / 255
        parts.append(np.quantile(values, (0.01, 0.05, 0.99), axis=1).T.astype(np.float64))
    return np.concatenate(parts)


def odd_brightness(quantiles: Float64[np.ndarray, "n 3"]) -> list[Issues]:
    """Return blank, dark and bright images; a blank one is not listed as dark or bright, too."""
    low, fifth, high = quantiles.T
    blank = high - low < BLANK
    return [
        _listed("blank", blank, 1 - (high - low)),
        _listed("dark", ~blank & (high < DARK), 1 - high),
        _listed("bright", ~blank & (fifth > BRIGHT), fifth),
    ]


def odd_shapes(sizes: Int64[np.ndarray, "n 2"]) -> list[Issues]:
    """Return images of an odd aspect ratio or size, by heights and widths before any resize."""
    height, width = sizes.T.astype(np.float64)
    ratio, side = np.log(width / height), np.log(height * width) / 2
    apart, away = (np.exp(-np.abs(values - np.median(values))) for values in (ratio, side))
    return [
        _listed("odd_aspect_ratio", apart < ODD_RATIO, 1 - apart),
        _listed("odd_size", (away < ODD_SIDE) & _far_out(side), 1 - away),
    ]


def _far_out(values: Float64[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    first, third = np.quantile(values, (0.25, 0.75))
    beyond = FENCE * (third - first)
    return np.asarray((values < first - beyond) | (values > third + beyond))


def _listed(kind: str, odd: Bool[np.ndarray, "n"], score: Float64[np.ndarray, "n"]) -> Issues:
    """Return the odd images, none where they are too many to be odd."""
    rows = np.flatnonzero(odd) if odd.mean() < COMMON else np.zeros(0, np.int64)
    return issues(kind, rows, score[rows])
