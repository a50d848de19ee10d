"""Rows that a small model learns from, where there are more than it needs: drawn class by class."""

from typing import Final

import numpy as np
from jaxtyping import Int64

from clipguard.seeds import Seed

MOST_ROWS: Final = 100_000
"""Samples that a small net or a linear probe learns from, at most: more only take time and memory."""

FEWEST_OF_A_CLASS: Final = 50
"""Samples that a class keeps at least, as far as it has them and all classes can keep so many."""


def drawn_by_class(
    labels: Int64[np.ndarray, "n"], rows: Int64[np.ndarray, "m"], most: int, seed: Seed
) -> Int64[np.ndarray, "l"]:
    """Return `most` of the rows, ascending, or all where they are no more; every class keeps its share.

    Args:
        labels: of all samples.
        rows: to draw from, ascending.
        most: how many are drawn.
        seed: of the draw.
    """
    if len(rows) <= most:
        return rows
    sizes = np.bincount(labels[rows])
    quota = _quota(sizes, most)
    order = seed.generator().permutation(rows)
    order = order[np.argsort(labels[order], kind="stable")]
    # Place of each row within its class, in the order of the draw.
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[place < quota[labels[order]]])


def _quota(sizes: Int64[np.ndarray, "k"], most: int) -> Int64[np.ndarray, "k"]:
    """Return how many of each class are drawn: `most` in all, as many as a class has at most."""
    least = np.minimum(sizes, min(FEWEST_OF_A_CLASS, most // len(sizes)))
    share = (most - least.sum()) * ((sizes - least) / max(1, (sizes - least).sum()))
    quota = least + np.floor(share).astype(np.int64)
    # What rounding down has left goes to the classes that lost most by it.
    lost = np.argsort(np.floor(share) - share, kind="stable")[: most - int(quota.sum())]
    quota[lost] += 1
    return np.asarray(quota, dtype=np.int64)
