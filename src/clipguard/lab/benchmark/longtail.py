"""Long-tailed sets: class sizes that fall exponentially from the first class to the last."""

import numpy as np
from jaxtyping import Int64

from clipguard.seeds import Seed
from clipguard.types import ImageSet


def long_tailed(data: ImageSet, imbalance: float, seed: Seed) -> ImageSet:
    """Return a sub-set, rows ascending, in which class i of k keeps m imbalance^(-i / (k - 1)) samples.

    m is the size of the smallest class; at least one sample a class stays (Cui et al. 2019's profile).
    """
    return data.take(_rows(data.labels, len(data.class_names), imbalance, seed))


def _rows(labels: Int64[np.ndarray, "n"], k: int, imbalance: float, seed: Seed) -> Int64[np.ndarray, "m"]:
    smallest = int(np.bincount(labels, minlength=k).min())
    kept = []
    for label in range(k):
        count = max(1, round(smallest * imbalance ** (-label / max(1, k - 1))))
        of_class = np.flatnonzero(labels == label)
        kept.append(seed.child(label).numpy().choice(of_class, min(count, len(of_class)), replace=False))
    return np.sort(np.concatenate(kept))
