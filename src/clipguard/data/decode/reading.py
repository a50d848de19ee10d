"""Whole sources -> pixels, with a list of what could not be read."""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int64

from clipguard.data import ImageSource, Item
from clipguard.data.decode.decoder import Decoder
from clipguard.data.decode.pixels import Views
from clipguard.data.listing import Unreadable
from clipguard.data.source import Contents, contents_of
from clipguard.errors import ClipguardError
from clipguard.types import ImageSet, Preprocessing, StepProgress, image_set

MAX_UNREADABLE = 0.1
REPORT_EVERY = 100

PLACES = 8
"""Starts of a source that is read from some rows only at which its sizes are sampled: each costs a page."""


@dataclass(frozen=True, slots=True)
class ReadRow:
    """One row of a source, read once.

    Attributes:
        row: its number.
        contents: of the undecoded image.
        views: what preprocessings make of it, or why it cannot be read.
    """

    row: int
    contents: Contents
    views: Views | Unreadable


def read_rows(
    source: ImageSource,
    rows: Int64[np.ndarray, "m"] | range,
    views: tuple[Preprocessing, ...],
    decoder: Decoder,
) -> Iterator[ReadRow]:
    """Return each of `rows`, which ascend: hashed, decoded and prepared from the same bytes.

    Raises:
        ClipguardError: the images made too many workers crash or hang.
    """
    waiting: deque[Contents] = deque()

    def items() -> Iterator[Item]:
        for item in source.read(rows):
            waiting.append(contents_of(item))
            yield item

    for row, result in zip(rows, decoder.results(views, items()), strict=True):
        contents = waiting.popleft()
        if not isinstance(result, Views):
            yield ReadRow(int(row), contents, Unreadable(source.ids[row], str(result)))
        else:
            yield ReadRow(int(row), contents, result)


def read_images(
    source: ImageSource,
    preprocessing: Preprocessing,
    progress: StepProgress | None = None,
    *,
    every_class: bool = True,
) -> tuple[ImageSet, tuple[Unreadable, ...]]:
    """Return all readable images, resized and cropped but not normalised, and the list of the others.

    Args:
        source: where they come from.
        preprocessing: what every image goes through.
        progress: called with the numbers of rows done and of all rows now and then, and at the end.
        every_class: must have a readable image; a sample may by chance have none.

    Raises:
        ClipguardError: see `check_readable`.
    """
    total = len(source)
    images = np.empty((total, *preprocessing.size, 3), np.uint8)
    readable = np.ones(total, bool)
    unreadable = []
    for done, read in enumerate(read_rows(source, range(total), (preprocessing,), Decoder(source.limits)), 1):
        if isinstance(read.views, Unreadable):
            readable[read.row] = False
            unreadable.append(read.views)
        else:
            images[read.row] = read.views.images[0]
        if progress and (done == total or done % REPORT_EVERY == 0):
            progress(done, total)
    check_readable(source, tuple(unreadable), every_class=every_class)
    if unreadable:
        images = images[readable]
    kept = source.take(np.flatnonzero(readable))
    data = image_set(images, kept.labels, kept.class_names, kept.ids)
    return replace(data, groups=kept.groups), (*source.refused, *unreadable)


def check_readable(
    source: ImageSource, unreadable: tuple[Unreadable, ...], *, every_class: bool = True
) -> None:
    """Return nothing when enough of `source` could be read; what it refused before counts too.

    Raises:
        ClipguardError: more than 10 % of the images are unreadable, or, if `every_class`, all of a class.
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
    if not every_class:
        return
    lost = {entry.id for entry in unreadable}
    left = {int(label) for label, name in zip(source.labels, source.ids, strict=True) if name not in lost}
    for label in np.unique(source.labels):
        if label not in left:
            raise ClipguardError(
                f"class {source.class_names[label]!r} of {source.location} has no readable image, {first}: "
                "repair or remove it"
            )


def common_size(source: ImageSource) -> tuple[int, int]:
    """Return the most frequent height and width of some images, the larger of equals.

    Raises:
        ClipguardError: none of them is readable.
    """
    counts = sampled_sizes(source)
    return max(counts, key=lambda size: (counts[size], size[0] * size[1], size))


def sampled_sizes(source: ImageSource, sample: int = 64) -> Counter[tuple[int, int]]:
    """Return how often each height and width occurs among some `sample` images.

    Raises:
        ClipguardError: none of them is readable.
    """
    rows = _sampled(source, sample)
    results = list(Decoder(source.limits).results("size", source.read(rows)))
    counts = Counter(size for size in results if isinstance(size, tuple))
    if not counts:
        raise ClipguardError(
            f"none of {len(rows)} sampled images of {source.location} is readable, first: {results[0]}"
        )
    return counts


def _sampled(source: ImageSource, sample: int) -> Int64[np.ndarray, "m"]:
    """Return evenly spaced rows; where reading starts at some rows only, a few after some of these."""
    count = min(sample, len(source))
    starts = source.starts
    if len(starts) == len(source):
        return np.unique(np.linspace(0, len(source) - 1, count).round().astype(np.int64))
    chosen = np.unique(
        np.linspace(0, len(starts) - 1, min(count, PLACES, len(starts))).round().astype(np.int64)
    )
    ends = np.append(starts, len(source))[chosen + 1]
    each = -(-count // len(chosen))
    pieces = [
        np.arange(starts[one], min(starts[one] + each, end)) for one, end in zip(chosen, ends, strict=True)
    ]
    return np.concatenate(pieces)
