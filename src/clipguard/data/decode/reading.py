"""Whole sources -> pixels, with a list of what could not be read."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from clipguard.data import ImageSource
from clipguard.data.decode.decoder import Decoder
from clipguard.data.decode.geometry import prepared
from clipguard.data.listing import Unreadable
from clipguard.errors import ClipguardError
from clipguard.types import ImageSet, Preprocessing, StepProgress, image_set

MAX_UNREADABLE = 0.1
REPORT_EVERY = 100


class Sizes(NamedTuple):
    """Heights and widths found by `common_size`."""

    common: tuple[int, int]
    largest: tuple[int, int]
    every: frozenset[tuple[int, int]] = frozenset()
    """All that were met among the images looked at."""


def decode_rows(
    source: ImageSource, rows: Int64[np.ndarray, "m"] | range, decoder: Decoder
) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"] | Unreadable]]:
    """Return (row, pixels) or (row, why not) for each of `rows`, which ascend.

    Raises:
        ClipguardError: the images made too many workers crash or hang.
    """
    for row, result in zip(rows, decoder.results("pixels", source.read(rows)), strict=True):
        if isinstance(result, np.ndarray):
            yield int(row), result
        else:
            yield int(row), Unreadable(source.ids[row], str(result))


def thumbnail(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Return `image` at exactly `size` (height, width), antialiased; bit for bit itself if it has it."""
    if image.shape[:2] == size:
        return image
    height, width = size
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def read_images(
    source: ImageSource,
    preprocessing: Preprocessing,
    progress: StepProgress | None = None,
) -> tuple[ImageSet, tuple[Unreadable, ...]]:
    """Return all readable images, resized and cropped but not normalised, and the list of the others.

    Args:
        source: where they come from.
        preprocessing: what every image goes through.
        progress: called with the numbers of rows done and of all rows now and then, and at the end.

    Raises:
        ClipguardError: see `check_readable`.
    """
    total = len(source)
    images = np.empty((total, *preprocessing.size, 3), np.uint8)
    readable = np.ones(total, bool)
    unreadable = []
    for row, result in decode_rows(source, range(total), Decoder(source.limits)):
        if isinstance(result, Unreadable):
            readable[row] = False
            unreadable.append(result)
        else:
            images[row] = prepared(result, preprocessing)
        if progress and (row + 1 == total or (row + 1) % REPORT_EVERY == 0):
            progress(row + 1, total)
    check_readable(source, tuple(unreadable))
    if unreadable:
        images = images[readable]
    kept = source.take(np.flatnonzero(readable))
    return image_set(images, kept.labels, kept.class_names, kept.ids), (*source.refused, *unreadable)


def check_readable(source: ImageSource, unreadable: tuple[Unreadable, ...]) -> None:
    """Return nothing when enough of `source` could be read; what it refused before counts too.

    Raises:
        ClipguardError: more than 10 % of the images, or all images of a class, are unreadable.
    """
    failed = (*source.refused, *unreadable)
    if not failed:
        return
    first = f"first {failed[0].id!r} ({failed[0].reason})"
    total = len(source) + len(source.refused)
    if len(failed) > MAX_UNREADABLE * total:
        raise ClipguardError(
            f"{len(failed)} of {total} images of {source.location} are unreadable, "
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


def common_size(source: ImageSource, sample: int = 64) -> Sizes:
    """Return the most frequent size of `sample` evenly spaced images (the larger of equals), and the largest.

    Raises:
        ClipguardError: none of them is readable.
    """
    rows = np.unique(np.linspace(0, len(source) - 1, min(sample, len(source))).round().astype(np.int64))
    results = list(Decoder(source.limits).results("size", source.read(rows)))
    sizes = [size for size in results if isinstance(size, tuple)]
    if not sizes:
        raise ClipguardError(
            f"none of {len(rows)} sampled images of {source.location} is readable, first: {results[0]}"
        )
    counts = Counter(sizes)

    def area(size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
        return size[0] * size[1], size

    return Sizes(
        common=max(counts, key=lambda size: (counts[size], area(size))),
        largest=max(sizes, key=area),
        every=frozenset(sizes),
    )
