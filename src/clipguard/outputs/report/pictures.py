"""The pictures of the page: images as the scan saw them, as data URIs within a bound of bytes."""

import base64
import io
from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float, Int64, UInt8
from PIL import Image

from clipguard.runs import RunFolder, ShardedArray, read_table
from clipguard.runs.summary import read_summary
from clipguard.triggers.affine import AffineTrigger

SIDE: Final = 80
"""Longest side of a picture in pixels."""

LOSSLESS: Final = 100
"""How many pictures keep every pixel: a lossy one may lose a faint trigger."""

_QUALITIES: Final = ((75, SIDE), (68, SIDE), (60, SIDE), (50, SIDE), (40, 64), (30, 48), (10, 32))
"""Quality and side of lossy pictures: the first that keeps within the bound is taken for all of them."""

_GREY: Final = 128.0

Picture = UInt8[np.ndarray, "h w 3"]


def images_by_id(names: set[str], folder: RunFolder) -> dict[str, Picture]:
    """Return the images of these samples by name, as the scan saw them, if it still has them.

    By name, since whoever sorts the table must not see other pictures.
    """
    stage, read = folder.finished("images"), folder.finished("embeddings")
    if stage is None or read is None:
        return {}
    images, n = ShardedArray.of(stage.path), 0
    places: dict[str, int] = {}
    for file in sorted((read.path / "metadata").glob("*.parquet")):
        ids = read_table(file, ["image_path"])["image_path"].tolist()
        places |= {name: place for place, name in enumerate(ids, n) if name in names}
        n += len(ids)
    # A scan that was stopped may have left images of other data rows, or of another size.
    if images.shape != (n, *read_summary(folder.path).data.size, 3):
        return {}
    rows: Int64[np.ndarray, m] = np.array([*places.values()], np.int64)
    return dict(zip(places, images[rows], strict=True))


def thumbnails(pictures: Sequence[Picture | None], limit: int) -> list[str | None]:
    """Return data URIs of at most `limit` bytes before base64, None where there is no picture.

    The first `LOSSLESS` keep every pixel as long as half of the bytes suffice. The others are made smaller
    until they fit.
    """
    encoded: list[bytes | None] = []
    size = 0
    for pixels in pictures[:LOSSLESS]:
        one = None if pixels is None else webp(pixels)
        if size + len(one or b"") > limit // 2:
            break
        size += len(one or b"")
        encoded.append(one)
    encoded += _lossy(pictures[len(encoded) :], limit - size)
    return [None if one is None else uri(one) for one in encoded]


def _lossy(pictures: Sequence[Picture | None], limit: int) -> list[bytes | None]:
    for quality, side in _QUALITIES:
        encoded = [None if one is None else webp(one, quality, side) for one in pictures]
        if sum(len(one or b"") for one in encoded) <= limit:
            return encoded
    return [None] * len(pictures)


def webp(pixels: Picture, quality: int | None = None, side: int = SIDE) -> bytes:
    """Return the image as WebP, shrunk to `side` pixels where it is larger; without a quality, lossless."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if max(pixels.shape[:2]) > side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=quality is None, quality=75 if quality is None else quality, method=4)
    return buffer.getvalue()


def uri(encoded: bytes) -> str:
    """Return a WebP file as a data URI."""
    return "data:image/webp;base64," + base64.b64encode(encoded).decode()


def picture(pixels: Picture) -> str:
    """Return the image as a data URI, lossless up to `SIDE` pixels a side, else shrunk to that."""
    return uri(webp(pixels))


def trigger_alone(trigger: AffineTrigger) -> Picture:
    """Return what the trigger does to a grey image, with its largest change stretched to full contrast."""
    change: Float[np.ndarray, "h w 3"] = trigger.scale * _GREY + trigger.shift - _GREY
    stretch = (_GREY - 1) / max(float(np.abs(change).max(initial=0)), 1e-6)
    return (_GREY + change * stretch).clip(0, 255).astype(np.uint8)


def eight_bits(values: Float[np.ndarray, "h w 3"]) -> dict[str, float | str]:
    """Return values as a lossless picture, with the numbers that its 0 and its 255 stand for."""
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    scaled = (values - low) * (255 / max(high - low, 1e-9))
    pixels = np.rint(scaled).clip(0, 255).astype(np.uint8)
    return {"low": round(low, 6), "high": round(high, 6), "picture": picture(pixels)}
