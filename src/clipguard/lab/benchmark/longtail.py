"""Long-tailed sets: class sizes that fall exponentially from the first class to the last."""

import numpy as np

from clipguard.seeds import Seed
from clipguard.types import ImageSet


def long_tailed(data: ImageSet, imbalance: float, seed: Seed) -> ImageSet:
    """Return a sub-set, rows ascending, in which class i of k keeps m imbalance^(-i / (k - 1)) samples.

    m is the size of the smallest class; at least one sample a class stays (Cui et al. 2019's profile).
    """
    k = len(data.class_names)
    smallest = int(np.bincount(data.labels, minlength=k).min())
    kept = []
    for label in range(k):
        count = max(1, round(smallest * imbalance ** (-label / max(1, k - 1))))
        of_class = np.flatnonzero(data.labels == label)
        kept.append(seed.child(label).generator().choice(of_class, min(count, len(of_class)), replace=False))
    return data.take(np.sort(np.concatenate(kept)))
