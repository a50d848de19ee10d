"""Similar embeddings in groups that are small enough to compare every pair of them.

All pairs of 10^6 images would take hours. Nearly equal images are nearly equally close to any centre: so each
image is put into the cells of its two nearest centres (an inverted file, as in large indexes of vectors), and
pairs are compared within cells alone.
"""

from typing import Final

import numpy as np
from jaxtyping import Float32, Int64

from clipguard.seeds import Seed
from clipguard.types import Rows, chunks

LARGEST_CELL: Final = 2048
"""Images whose pairs are compared at once: a matrix of all pairs takes 16 MB."""

PROBES: Final = 2
"""Cells that each image is put into: two nearly equal images seldom have neither in common."""

_MOST_TO_LEARN: Final = 50_000
"""Images that the centres are found on, at most."""


def unit_rows(embeddings: Rows, rows: slice | Int64[np.ndarray, "m"]) -> Float32[np.ndarray, "m d"]:
    """Return some embeddings at length 1; one without a direction stays 0."""
    some = np.asarray(embeddings[rows], dtype=np.float32)
    return np.asarray(some / np.maximum(np.linalg.norm(some, axis=1, keepdims=True), 1e-12))


def cells(embeddings: Rows, rows: Int64[np.ndarray, "m"], seed: Seed) -> list[Int64[np.ndarray, "l"]]:
    """Return groups of at most `LARGEST_CELL` of the rows, ascending; each row is in one or two of them.

    Args:
        embeddings: of all images, [n, d].
        rows: to group, ascending.
        seed: of the centres.
    """
    if len(rows) <= LARGEST_CELL:
        return [rows]
    centres = _centres(embeddings, rows, seed)
    number, similarity = np.empty((2, len(rows), PROBES))
    for part in chunks(len(rows), LARGEST_CELL):
        products = unit_rows(embeddings, rows[part]) @ centres.T
        number[part] = np.argpartition(-products, PROBES - 1, axis=1)[:, :PROBES]
        similarity[part] = np.take_along_axis(products, number[part].astype(np.int64), axis=1)
    # A large cell is cut by the similarity to its centre, which is the same for equal images.
    order = np.lexsort((similarity.ravel(), number.ravel()))
    members = rows[order // PROBES]
    cuts = np.flatnonzero(np.diff(number.ravel()[order])) + 1
    return [
        np.sort(piece)
        for cell in np.split(members, cuts)
        for piece in np.array_split(cell, -(-len(cell) // LARGEST_CELL))
    ]


def _centres(embeddings: Rows, rows: Int64[np.ndarray, "m"], seed: Seed) -> Float32[np.ndarray, "c d"]:
    """Return a centre for every quarter of a cell, so that cells with `PROBES` centres are half full."""
    from sklearn.cluster import MiniBatchKMeans

    draw = seed.generator()
    learned = np.sort(draw.permutation(rows)[:_MOST_TO_LEARN])
    count = min(-(-len(rows) * 2 * PROBES // LARGEST_CELL), len(learned))
    means = MiniBatchKMeans(
        count,
        init="random",
        n_init=1,
        max_iter=10,
        batch_size=2 * LARGEST_CELL,
        random_state=int(draw.integers(2**31)),
    )
    means.fit(np.concatenate([unit_rows(embeddings, learned[part]) for part in chunks(len(learned))]))
    return np.asarray(means.cluster_centers_, dtype=np.float32)
