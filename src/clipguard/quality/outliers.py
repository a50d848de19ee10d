"""Outliers: images whose embeddings lie far from all others, by the distance of Mahalanobis.

Most similar images say less: noise, text and drawings are not much further from their nearest neighbours than
a rare photograph is, but they lie where the whole data set hardly varies.
"""

from typing import Final

import numpy as np
from jaxtyping import Float64, Int64

from clipguard.compute.cross_validation import Groups, fold_numbers
from clipguard.quality.cells import unit_rows
from clipguard.quality.issues import Issues, issues
from clipguard.quality.odd_images import COMMON
from clipguard.seeds import Seed
from clipguard.types import Rows, chunks

FENCE: Final = 5.0
"""Interquartile ranges above the third quartile from which on a distance is that of an outlier."""

FOLDS: Final = 5
"""Every image is measured by a covariance that was fitted without it, so that none hides itself."""

MOST_TO_LEARN: Final = 20_000
"""Images that each covariance is fitted to, at most."""

FEWEST: Final = 100
"""Images below which there are no outliers: a covariance of fewer says too little."""


def outliers(embeddings: Rows, seed: Seed, groups: Groups | None = None) -> list[Issues]:
    """Return the images whose embeddings [n, d] lie far out; none where they are too many to be odd."""
    if len(embeddings) < FEWEST:
        return []
    distance = distances(embeddings, seed, groups)
    first, median, third = np.quantile(distance, (0.25, 0.5, 0.75))
    rows = np.flatnonzero(distance > third + FENCE * (third - first))
    if len(rows) >= COMMON * len(distance):
        return []
    return [issues("outlier", rows, 1 - median / distance[rows])]


def distances(embeddings: Rows, seed: Seed, groups: Groups | None = None) -> Float64[np.ndarray, "n"]:
    """Return the squared distance of each image from the mean of the others, by their covariance.

    Its unit is the median of those that are measured by the same covariance: an outlier widens what it is in.
    """
    n, draw = len(embeddings), seed.generator()
    fold, distance = fold_numbers(n, FOLDS, draw, groups), np.zeros(n)
    for number in range(FOLDS):
        learned = np.sort(draw.permutation(np.flatnonzero(fold != number))[:MOST_TO_LEARN])
        inside = np.flatnonzero(fold == number)
        measured = _measured(embeddings, learned, inside)
        distance[inside] = measured / max(float(np.median(measured)), 1e-12)
    return distance


def _measured(
    embeddings: Rows, learned: Int64[np.ndarray, "m"], inside: Int64[np.ndarray, "l"]
) -> Float64[np.ndarray, "l"]:
    from sklearn.covariance import LedoitWolf

    fitted = LedoitWolf().fit(_unit(embeddings, learned))
    parts = [fitted.mahalanobis(_unit(embeddings, inside[part])) for part in chunks(len(inside))]
    return np.concatenate(parts)


def _unit(embeddings: Rows, rows: Int64[np.ndarray, "m"]) -> Float64[np.ndarray, "m d"]:
    out = np.empty((len(rows), *embeddings.shape[1:]))
    for part in chunks(len(rows)):
        out[part] = unit_rows(embeddings, rows[part])
    return out
