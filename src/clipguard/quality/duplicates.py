"""Duplicates: the same bytes, or nearly the same picture.

Near duplicates are searched among similar embeddings and judged by pixels: the edges of both pictures, or of
one and the mirrored other, must correlate. An embedding alone would call any two grey cars from the left
alike; pixels alone, any two ships below the same sky.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

from clipguard.quality.cells import cells, unit_rows
from clipguard.quality.issues import Issues, issues
from clipguard.seeds import Seed
from clipguard.types import Rows, StepProgress

LEAST_COSINE: Final = 0.75
"""Of the embeddings of two pictures that are compared at all."""

LEAST_CORRELATION: Final = 0.7
"""Of the edges of two pictures that are nearly the same. Of the pairs of CIFAR-10 rows above both bounds,
one in twenty shows two objects."""

NEIGHBOURS: Final = 10
"""An image has this many others whose edges correlate with its own as ordinary images do, at least."""

GRID: Final = 16
"""Places a side at which edges are measured, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """What the most similar images say of n images; rows that were not compared have no twin.

    Attributes:
        twin: earlier row whose edges correlate most with the image's, -1 where none is similar.
        correlation: of both; 0 without a twin.
        other_twin: the same among earlier rows of another label.
        other_correlation: of both.
        ordinary: the `NEIGHBOURS`-th largest correlation of the image; 0 without so many similar ones.
    """

    twin: Int64[np.ndarray, "n"]
    correlation: Float64[np.ndarray, "n"]
    other_twin: Int64[np.ndarray, "n"]
    other_correlation: Float64[np.ndarray, "n"]
    ordinary: Float64[np.ndarray, "n"]


def first_of_equal(sha256: UInt8[np.ndarray, "n 32"]) -> Int64[np.ndarray, "n"]:
    """Return for each image the first row with the same hash of its bytes: its own where there is none."""
    words = np.ascontiguousarray(sha256).view(np.uint64)
    # Stable: of equal hashes, the first row comes first.
    order = np.lexsort(words.T)
    new = np.zeros(len(order), dtype=bool)
    new[:1] = True
    for word in words.T:
        new[1:] |= word[order[1:]] != word[order[:-1]]
    first = np.empty(len(order), dtype=np.int64)
    first[order] = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    return first


def exact_duplicates(first: Int64[np.ndarray, "n"], labels: Int64[np.ndarray, "n"]) -> list[Issues]:
    """Return every image that has the bytes of an earlier one, apart by whether the first has its label."""
    rows = np.flatnonzero(first != np.arange(len(first)))
    return _duplicates("exact_duplicate", rows, first[rows], np.ones(len(rows)), labels)


def near_duplicates(neighbours: Neighbours, labels: Int64[np.ndarray, "n"]) -> list[Issues]:
    """Return every image that is nearly an earlier one, apart by whether an earlier one has another label."""
    least = least_correlation(neighbours.ordinary, labels)[labels]
    other = neighbours.other_correlation >= least
    twin = np.where(other, neighbours.other_twin, neighbours.twin)
    correlation = np.where(other, neighbours.other_correlation, neighbours.correlation)
    rows = np.flatnonzero(correlation >= least)
    return _duplicates("near_duplicate", rows, twin[rows], correlation[rows], labels)


def least_correlation(
    ordinary: Float64[np.ndarray, "n"], labels: Int64[np.ndarray, "n"]
) -> Float64[np.ndarray, "k"]:
    """Return the least correlation of near duplicates, by class.

    Where the images of a class look alike, as handwritten digits do, only those that are far more alike are
    duplicates. With an ordinary correlation of 0, 0.1, 0.3 and 0.7 it takes 0.7, 0.76, 0.85 and 0.97.
    """
    alike = [np.median(ordinary[labels == label]) for label in np.unique(labels)]
    least = np.full(int(labels.max(initial=0)) + 1, LEAST_CORRELATION)
    least[np.unique(labels)] = 1 - (1 - LEAST_CORRELATION) * (1 - np.array(alike)) ** 2
    return least


def _duplicates(
    kind: str,
    rows: Int64[np.ndarray, "m"],
    others: Int64[np.ndarray, "m"],
    score: Float64[np.ndarray, "m"],
    labels: Int64[np.ndarray, "n"],
) -> list[Issues]:
    apart = labels[rows] != labels[others]
    return [
        issues(name, rows[which], score[which], others[which])
        for name, which in ((f"{kind}_other_label", apart), (kind, ~apart))
    ]


def neighbours(
    images: Rows,
    embeddings: Rows,
    labels: Int64[np.ndarray, "n"],
    compared: Bool[np.ndarray, "n"],
    seed: Seed,
    progress: StepProgress = lambda done, total: None,
) -> Neighbours:
    """Return what the most similar images say of those that are `compared`, cell by cell.

    Args:
        images: of one size [n, h, w, 3], uint8.
        embeddings: of the same [n, d].
        labels: of the same.
        compared: images that are compared with each other: of equal ones, the first.
        seed: of the cells.
        progress: called with (cells done, cells).
    """
    n = len(labels)
    nobody, nothing = np.full((2, n), -1), np.zeros((2, n))
    result = Neighbours(
        twin=nobody[0],
        correlation=nothing[0],
        other_twin=nobody[1],
        other_correlation=nothing[1],
        ordinary=np.zeros(n),
    )
    groups = cells(embeddings, np.flatnonzero(compared), seed)
    for number, rows in enumerate(groups, 1):
        _compare(result, rows, images[rows], unit_rows(embeddings, rows), labels[rows])
        progress(number, len(groups))
    return result


def _compare(
    result: Neighbours,
    rows: Int64[np.ndarray, "m"],
    images: UInt8[np.ndarray, "m h w 3"],
    embeddings: Float32[np.ndarray, "m d"],
    labels: Int64[np.ndarray, "m"],
) -> None:
    """Write into `result` what the pairs of a cell say, where it is more than other cells have said."""
    cosine = embeddings @ embeddings.T
    grey = images.mean(3, dtype=np.float32)
    plain, mirrored = edges(grey), edges(grey[:, :, ::-1])
    correlation = np.maximum(plain @ plain.T, plain @ mirrored.T)
    correlation[cosine < LEAST_COSINE] = 0.0
    result.ordinary[rows] = np.maximum(result.ordinary[rows], _ordinary(correlation))
    earlier = np.tri(len(rows), k=-1, dtype=bool)
    apart = earlier & (labels[:, None] != labels)
    for allowed, twin, best in (
        (earlier, result.twin, result.correlation),
        (apart, result.other_twin, result.other_correlation),
    ):
        among = np.where(allowed, correlation, 0.0)
        place = among.argmax(1)
        value = among[np.arange(len(rows)), place]
        more = value > best[rows]
        twin[rows[more]], best[rows[more]] = rows[place[more]], value[more]


def _ordinary(correlation: Float32[np.ndarray, "m m"]) -> Float32[np.ndarray, "m"]:
    """Return the `NEIGHBOURS`-th largest correlation of each image with others, at least 0."""
    m = len(correlation)
    if m <= NEIGHBOURS:
        return np.zeros(m, np.float32)
    # One more, for its own.
    place = m - NEIGHBOURS - 1
    return np.asarray(np.maximum(np.partition(correlation, place, axis=1)[:, place], 0))


def edges(grey: Float32[np.ndarray, "m h w"]) -> Float32[np.ndarray, "m e"]:
    """Return the differences between neighbours in a coarse picture, at length 1; 0 of a blank one."""
    coarse = _coarse(_coarse(grey, 1), 2)
    down = np.diff(coarse, axis=1)[:, :, :-1]
    right = np.diff(coarse, axis=2)[:, :-1]
    flat = np.concatenate([down, right], axis=1).reshape(len(grey), -1)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    # Differences of less than a grey level in the mean are rounding and compression.
    return np.where(length > np.sqrt(flat.shape[1]), flat / np.maximum(length, 1e-9), 0).astype(np.float32)


def _coarse(grey: Float32[np.ndarray, "m h w"], axis: int) -> Float32[np.ndarray, "..."]:
    """Return the pictures averaged to at most `GRID` places along an axis."""
    side = grey.shape[axis]
    starts = np.linspace(0, side, min(GRID, side) + 1).astype(np.int64)
    shape = [1, 1, 1]
    shape[axis] = -1
    sums = np.add.reduceat(grey, starts[:-1], axis=axis)
    return np.asarray(sums / np.diff(starts).reshape(shape).astype(np.float32))
