"""Hostile bytes -> RGB pixels, or a reason why not."""

import io
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Shaped, UInt8
from PIL import Image, UnidentifiedImageError

from clipguard.errors import ClipguardError
from clipguard.sources import Failed, ImageSource, Item
from clipguard.sources.listing import first_line
from clipguard.sources.quiet import quiet_pillow
from clipguard.types import ImageSet, image_set

# Pillow's own threshold: a quarter of a GiB once decoded.
MAX_PIXELS = 89_478_485
MAX_UNREADABLE = 0.1
# EPS runs an interpreter, and rare formats are the least tested code: neither is for untrusted bytes.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
ORIENTATION_TAG = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
REPORT_EVERY = 100


class UnreadableImage(Exception):  # noqa: N818  # a finding about the data, no fault
    """One image cannot be decoded; its text is the reason."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row of the list of unreadable images."""

    id: str
    reason: str


class Sizes(NamedTuple):
    """Heights and widths found by `common_size`."""

    common: tuple[int, int]
    largest: tuple[int, int]


@contextmanager
def _guarded() -> Iterator[None]:
    """Keep Pillow quiet inside the block and turn whatever it raises into `UnreadableImage`."""
    try:
        with quiet_pillow():
            yield
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        # Pillow's own text holds a memory address, different in each run.
        raise UnreadableImage("not an image of a known format") from error
    except Exception as error:  # Damaged files make Pillow raise nearly anything.
        raise UnreadableImage(first_line(error)) from error


@cache
def _formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that the installed Pillow knows: it fails on a name that it does not."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _opened(item: bytes | Image.Image, max_pixels: int) -> Image.Image:
    if item == b"":
        raise UnreadableImage("empty")
    image = Image.open(io.BytesIO(item), formats=_formats()) if isinstance(item, bytes) else item
    if image.width * image.height > max_pixels:
        raise UnreadableImage(f"{image.width} x {image.height} pixels, more than the limit of {max_pixels}")
    return image


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # Damaged EXIF says nothing about the pixels.
        return 1


def _grey(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Return more than 8 bits of grey as 8; Pillow's own conversion would cut everything above 255 off."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        grey = (np.asarray(image).astype(np.uint32) + 128) // 257
    else:
        # 32 bits have no agreed white: stretch what is there.
        values = np.nan_to_num(np.asarray(image, np.float64), nan=0, posinf=0, neginf=0)
        low, high = values.min(), values.max()
        grey = np.round((values - low) * (255 / max(high - low, 1e-12)))
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def _rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    if image.mode == "RGB" and "transparency" not in image.info:
        return np.array(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return _grey(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return np.array(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"))
    return np.array(image.convert("RGB"))


def _array(item: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "h w 3"]:
    channels = item.shape[2:]
    if item.dtype != np.uint8 or item.ndim < 2 or not item.size or channels not in ((), (1,), (3,)):
        raise UnreadableImage(f"array of {item.dtype} {list(item.shape)}, not uint8 [h, w, 3] or [h, w]")
    return np.array(np.broadcast_to(item.reshape(*item.shape[:2], -1), (*item.shape[:2], 3)))


def decode(item: Item, *, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "h w 3"]:
    """Return the RGB pixels of one item of a source, upright, transparent parts on white.

    Args:
        item: what `ImageSource.read` gives.
        max_pixels: height times width above which nothing is decoded; Pillow itself refuses 178,956,971.

    Raises:
        UnreadableImage: with the reason.
    """
    if isinstance(item, Failed):
        raise UnreadableImage(item.reason)
    if isinstance(item, np.ndarray):
        return _array(item)
    with _guarded():
        image = _opened(item, max_pixels)
        turn = TURNS.get(_orientation(image))
        pixels = _rgb(image)
        return pixels if turn is None else np.array(Image.fromarray(pixels).transpose(turn))


def decode_rows(
    source: ImageSource, rows: Int64[np.ndarray, "m"] | range, *, max_pixels: int = MAX_PIXELS
) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"] | Unreadable]]:
    """Return (row, pixels) or (row, why not) for each of `rows`, which ascend."""
    for row, item in zip(rows, source.read(rows), strict=True):
        result: UInt8[np.ndarray, "h w 3"] | Unreadable
        try:
            result = decode(item, max_pixels=max_pixels)
        except UnreadableImage as error:
            result = Unreadable(source.ids[row], str(error))
        yield int(row), result


def thumbnail(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Return `image` at exactly `size` (height, width), antialiased; bit for bit itself if it has it."""
    if image.shape[:2] == size:
        return image
    height, width = size
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def read_images(
    source: ImageSource,
    size: tuple[int, int],
    on_progress: Callable[[int, int], None] | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
) -> tuple[ImageSet, tuple[Unreadable, ...]]:
    """Return all readable images at `size` (height, width), and the list of the others.

    Args:
        source: where they come from.
        size: height and width of every image returned.
        on_progress: called with the numbers of rows done and of all rows now and then, and at the end.
        max_pixels: see `decode`.

    Raises:
        ClipguardError: see `check_readable`.
    """
    total = len(source)
    images = np.empty((total, *size, 3), np.uint8)
    readable = np.ones(total, bool)
    unreadable = []
    for row, result in decode_rows(source, range(total), max_pixels=max_pixels):
        if isinstance(result, Unreadable):
            readable[row] = False
            unreadable.append(result)
        else:
            images[row] = thumbnail(result, size)
        if on_progress and (row + 1 == total or (row + 1) % REPORT_EVERY == 0):
            on_progress(row + 1, total)
    check_readable(source, tuple(unreadable))
    if unreadable:
        images = images[readable]
    kept = source.take(np.flatnonzero(readable))
    return image_set(images, kept.labels, kept.class_names, kept.ids), tuple(unreadable)


def check_readable(source: ImageSource, unreadable: tuple[Unreadable, ...]) -> None:
    """Return nothing when enough of `source` could be read.

    Raises:
        ClipguardError: more than 10 % of the images, or all images of a class, are unreadable.
    """
    if not unreadable:
        return
    first = f"first {unreadable[0].id!r} ({unreadable[0].reason})"
    if len(unreadable) > MAX_UNREADABLE * len(source):
        raise ClipguardError(
            f"{len(unreadable)} of {len(source)} images of {source.location} are unreadable, "
            f"more than {MAX_UNREADABLE:.0%}, {first}: repair or remove them"
        )
    lost = {entry.id for entry in unreadable}
    left = {int(label) for label, name in zip(source.labels, source.ids, strict=True) if name not in lost}
    for label in np.unique(source.labels):
        if label not in left:
            raise ClipguardError(
                f"class {source.class_names[label]!r} of {source.location} has no readable image, {first}: "
                "repair or remove it"
            )


def _size(item: Item) -> tuple[int, int] | None:
    """Return height and width as `decode` would give them, from the header alone; None when unreadable."""
    if isinstance(item, Failed):
        return None
    if isinstance(item, np.ndarray):
        return int(item.shape[0]), int(item.shape[1])
    try:
        with _guarded():
            image = _opened(item, MAX_PIXELS)
            lying = 5 <= _orientation(image) <= 8
            return (image.width, image.height) if lying else (image.height, image.width)
    except UnreadableImage:
        return None


def common_size(source: ImageSource, probe: int = 64) -> Sizes:
    """Return the size that most of `probe` evenly spaced images have (the larger of equals), and the largest.

    Raises:
        ClipguardError: none of them is readable.
    """
    rows = np.unique(np.linspace(0, len(source) - 1, min(probe, len(source))).round().astype(np.int64))
    sizes = [size for size in map(_size, source.read(rows)) if size is not None]
    if not sizes:
        raise ClipguardError(f"none of {len(rows)} probed images of {source.location} is readable")
    counts = Counter(sizes)

    def area(size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        return size[0] * size[1], size

    return Sizes(
        common=max(counts, key=lambda size: (counts[size], area(size))), largest=max(sizes, key=area)
    )
