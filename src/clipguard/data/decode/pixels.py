"""Hostile bytes -> RGB pixels, or a reason why not. It runs in sandboxed workers: few imports."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, UnidentifiedImageError

from clipguard.data import Failed, Item
from clipguard.data.arrays import CHANNELS
from clipguard.data.decode.geometry import most_pixels, prepared
from clipguard.data.quiet import quiet_pillow
from clipguard.errors import reason_of
from clipguard.safety.limits import Limits
from clipguard.types import Preprocessing

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
DEFAULT_LIMITS: Final = Limits()

GREY_BITS: Final = (8, 10, 12, 14, 16)
"""Bits that cameras and scanners use of the 16 that a file has for each pixel."""

Size = tuple[int, int]
"""Height and width."""

Request = Literal["pixels", "size"] | tuple[Preprocessing, ...]
"""What is wanted of an image: its pixels, its size alone, or what one or more preprocessings make of it."""


@dataclass(frozen=True, slots=True)
class Views:
    """An image as one or more preprocessings give it, and its own height and width.

    `bits` are those in use where it has up to 16 bits of grey, else 0. `transparent` says that some of its
    pixels are, so that it looks otherwise in a viewer.
    """

    size: tuple[int, int]
    images: tuple[UInt8[np.ndarray, "_ _ 3"], ...]
    bits: int = 0
    transparent: bool = False


Decoded = UInt8[np.ndarray, "h w 3"] | tuple[int, int] | Views | str
"""What was wanted, or why there is none."""


class UnreadableImage(Exception):  # noqa: N818  # a finding about the data, no fault
    """One image cannot be decoded; its text is the reason."""


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
    except MemoryError as error:
        raise UnreadableImage("needs more memory than there is or the limit allows") from error
    except Exception as error:  # Damaged files make Pillow raise nearly anything.
        raise UnreadableImage(reason_of(error)) from error


@cache
def _formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that the installed Pillow knows: it fails on a name that it does not."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _opened(item: bytes | Image.Image, limits: Limits) -> Image.Image:
    if isinstance(item, bytes) and not item:
        raise UnreadableImage("empty")
    if isinstance(item, bytes) and len(item) > limits.file_bytes:
        raise UnreadableImage(f"{len(item)} bytes, more than the limit of {limits.file_bytes}")
    image = Image.open(io.BytesIO(item), formats=_formats()) if isinstance(item, bytes) else item
    _check_sides(*image.size, limits)
    return image


def _check_sides(width: int, height: int, limits: Limits) -> None:
    short, long = sorted((width, height))
    if short * long > limits.pixels:
        raise UnreadableImage(f"{width} x {height} pixels, more than the limit of {limits.pixels}")
    if long > limits.side_ratio * short:
        raise UnreadableImage(
            f"{width} x {height} pixels, a side more than {limits.side_ratio} times the other"
        )


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # Damaged EXIF says nothing about the pixels.
        return 1


class _Picture(NamedTuple):
    """An image in RGB, upright; whether it lay on its side; bits of grey and transparency, see `Views`."""

    image: Image.Image
    sideways: bool
    bits: int
    transparent: bool


def _bits_in_use(image: Image.Image) -> int:
    """Return the fewest of `GREY_BITS` that hold the brightest pixel; 0 for other images."""
    if not (image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))):
        return 0
    brightest = int(np.asarray(image).max())
    return next(bits for bits in GREY_BITS if brightest < 1 << bits or bits == GREY_BITS[-1])


def _grey(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Return more than 8 bits of grey as 8; Pillow's own conversion would cut everything above 255 off.

    X-rays have 12 bits in 16: scaled as if all were in use, 16 grey levels would be left of them.
    """
    if bits := _bits_in_use(image):
        top = (1 << bits) - 1
        grey = (np.asarray(image).astype(np.uint32) * 255 + top // 2) // top
    else:
        # 32 bits have no agreed white: stretch what is there.
        values = np.nan_to_num(np.asarray(image, np.float64), nan=0, posinf=0, neginf=0)
        low, high = values.min(), values.max()
        grey = np.round((values - low) * (255 / max(high - low, 1e-12)))
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return Image.fromarray(_grey(image))
    # Transparency is left out, as torchvision, timm and open_clip leave it out. What lies below transparent
    # pixels is what a model learns from: a trigger hidden there must be seen.
    return image.convert("RGB")


def _shines_through(image: Image.Image) -> bool:
    """Return whether some pixels of an image are transparent, wholly or in part."""
    return image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255)


def _picture(item: bytes | Image.Image, limits: Limits, scale: int = 1) -> _Picture:
    """Return an image in RGB, upright; a JPEG at a fraction of its size."""
    image = _opened(item, limits)
    if scale > 1:
        image.draft(image.mode, (image.width // scale, image.height // scale))
    # Reading the orientation first would load a PNG, and swallow what Pillow says of its damage.
    image.load()
    orientation, picture = _orientation(image), _rgb(image)
    turn = TURNS.get(orientation)
    upright = picture if turn is None else picture.transpose(turn)
    return _Picture(upright, 5 <= orientation <= 8, _bits_in_use(image), _shines_through(image))


def _scale(image: Image.Image, least: int) -> int:
    """Return 8, 4 or 2 for a JPEG of which such a fraction still has sides of twice `least` pixels, else 1.

    That costs a fraction of the time, and a resize to `least` makes the same of it but for rounding.
    """
    most = min(image.size) // (2 * least) if image.format == "JPEG" else 1
    return next((scale for scale in (8, 4, 2) if scale <= most), 1)


def _array(item: Shaped[np.ndarray, "..."], limits: Limits) -> UInt8[np.ndarray, "h w 3"]:
    channels = item.shape[2:]
    if item.dtype != np.uint8 or item.ndim < 2 or not item.size or channels not in CHANNELS:
        raise UnreadableImage(
            f"array of {item.dtype} {list(item.shape)}, not uint8 [h, w] or [h, w, 1, 3 or 4]"
        )
    _check_sides(item.shape[1], item.shape[0], limits)
    if channels == (4,):
        return np.array(item[..., :3])
    return np.array(np.broadcast_to(item.reshape(*item.shape[:2], -1), (*item.shape[:2], 3)))


def decode(item: Item, *, limits: Limits = DEFAULT_LIMITS) -> UInt8[np.ndarray, "h w 3"]:
    """Return the RGB pixels of one item of a source, upright, without transparency.

    Args:
        item: what `ImageSource.read` gives.
        limits: bounds above which nothing is decoded; Pillow itself refuses 178,956,971 pixels.

    Raises:
        UnreadableImage: with the reason.
    """
    if isinstance(item, Failed):
        raise UnreadableImage(item.reason)
    if isinstance(item, np.ndarray):
        return _array(item, limits)
    with _guarded():
        return np.array(_picture(item, limits).image)


def _views(views: tuple[Preprocessing, ...], item: Item, limits: Limits) -> Views:
    if isinstance(item, np.ndarray):
        pixels = _array(item, limits)
        images = tuple(prepared(pixels, view) for view in views)
        transparent = item.shape[2:] == (4,) and bool((item[..., 3] < 255).any())
        return Views((pixels.shape[0], pixels.shape[1]), images, transparent=transparent)
    assert not isinstance(item, Failed)
    with _guarded():
        opened = _opened(item, limits)
        # A scale for each view: what one is must not depend on the others that are made with it.
        scales = [_scale(opened, most_pixels(view)) for view in views]
        pictures = {scale: _picture(item, limits, scale) for scale in sorted(set(scales))}
        first = pictures[scales[0]]
        size = (opened.width, opened.height) if first.sideways else (opened.height, opened.width)
        pairs = zip(scales, views, strict=True)
        images = tuple(prepared(pictures[scale].image, view) for scale, view in pairs)
        return Views(size, images, first.bits, first.transparent)


def decoded(request: Request, item: Item, limits: Limits) -> Decoded:
    """Return what is wanted of an item, or the reason why it has none.

    The size of an encoded image comes from its header alone.
    """
    try:
        if request == "pixels" or isinstance(item, Failed):
            return decode(item, limits=limits)
        if isinstance(request, tuple):
            return _views(request, item, limits)
        if isinstance(item, np.ndarray):
            return int(item.shape[0]), int(item.shape[1])
        with _guarded():
            opened = _opened(item, limits)
            sideways = 5 <= _orientation(opened) <= 8
            return (opened.width, opened.height) if sideways else (opened.height, opened.width)
    except UnreadableImage as error:
        return str(error)
