"""What detectors look at that judge a class by the victim's features."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64, Int64

from clipguard.compute.inference import features
from clipguard.models.spec import Normalized
from clipguard.types import ImageSet


def features_of(victim: Normalized, data: ImageSet) -> Float64[np.ndarray, "n d"]:
    """Return what the victim's head is given of every image; its logits where it has no head."""
    return features(victim, data.images, np.arange(len(data))).astype(np.float64)


def rows_by_class(
    labels: Int64[np.ndarray, "n"], fewest: int
) -> Iterator[tuple[int, Int64[np.ndarray, "m"]]]:
    """Yield each class with at least so many samples, and their rows."""
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) >= fewest:
            yield int(label), rows
