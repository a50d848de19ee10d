"""Images of any size -> what a net takes: resize and crop. It runs in sandboxed workers: few imports."""

import math
from typing import Final

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from clipguard.types import Preprocessing

_FILTERS: Final = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def prepared(
    image: UInt8[np.ndarray, "h w 3"] | Image.Image, preprocessing: Preprocessing
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Return an image, of Pillow in RGB or an array, resized and cropped, its values not yet normalised.

    Bit for bit what the evaluation transforms of torchvision, open_clip and timm give on Pillow images. An
    image that has the resized size already is not touched by the resize.
    """
    size = image.shape[:2] if isinstance(image, np.ndarray) else (image.height, image.width)
    height, width = resized_size(size, preprocessing)
    if size != (height, width):
        picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        image = picture.resize((width, height), _FILTERS[preprocessing.interpolation])
    pixels = image if isinstance(image, np.ndarray) else np.array(image)
    return _centre(pixels, preprocessing.size, preprocessing.fill)


def most_pixels(preprocessing: Preprocessing) -> int:
    """Return the longer side of what the resize is to give, before the crop."""
    return math.floor(max(preprocessing.size) / preprocessing.crop)


def resized_size(size: tuple[int, ...], preprocessing: Preprocessing) -> tuple[int, int]:
    """Return height and width of an image of `size` after the resize, before the crop."""
    (h, w), crop = size, preprocessing.crop
    height, width = (math.floor(side / crop) for side in preprocessing.size)
    if preprocessing.resize == "squash":
        return height, width
    if preprocessing.resize == "shortest" and height == width:
        # Torchvision cuts fractions off, where the others round.
        return (height, int(height * w / h)) if h <= w else (int(height * h / w), height)
    ratios = h / height, w / width
    ratio = max(ratios) if preprocessing.resize == "longest" else min(ratios)
    return max(1, round(h / ratio)), max(1, round(w / ratio))


def _centre(
    image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], fill: int
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Return the centre of an image, padded where it is smaller."""
    if image.shape[:2] == size:
        return image
    missing = [max(0, want - have) for want, have in zip(size, image.shape[:2], strict=True)]
    if any(missing):
        around = [(some // 2, some - some // 2) for some in missing]
        image = np.pad(image, (*around, (0, 0)), constant_values=fill)
    top, left = (round((have - want) / 2) for have, want in zip(image.shape[:2], size, strict=True))
    return np.ascontiguousarray(image[top : top + size[0], left : left + size[1]])
