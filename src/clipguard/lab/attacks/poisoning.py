"""A data set with other images and labels at some rows, and the truth about them."""

import numpy as np
from jaxtyping import Int64, UInt8

from clipguard.errors import ClipguardError
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.types import ImageSet, image_set


def rebuilt(
    data: ImageSet,
    rows: Int64[np.ndarray, "p"],
    images: UInt8[np.ndarray, "p h w 3"],
    labels: Int64[np.ndarray, "p"],
    cover: Int64[np.ndarray, "c"] | None = None,
    cover_images: UInt8[np.ndarray, "c h w 3"] | None = None,
) -> ImageSet:
    """Return `data` with other images and labels at `rows`, and other images at the rows `cover`.

    Raises:
        ClipguardError: a new label is no class of `data`.
    """
    k = len(data.class_names)
    if outside := sorted({int(label) for label in labels if not 0 <= label < k}):
        raise ClipguardError(f"target class {outside[0]} does not exist: choose one of 0 to {k - 1}")
    all_images, all_labels = np.array(data.images), data.labels.copy()
    all_images[rows], all_labels[rows] = images, labels
    if cover is not None and cover_images is not None:
        all_images[cover] = cover_images
    return image_set(all_images, all_labels, data.class_names, data.ids)


def truth_of(
    data: ImageSet,
    rows: Int64[np.ndarray, "p"],
    attack: str,
    target: int | None,
    cover: Int64[np.ndarray, "c"] | None = None,
) -> PoisonTruth:
    """Return the truth of an attack that poisoned `rows` and made cover samples of the rows `cover`."""
    poisoned, is_cover = np.zeros(len(data), dtype=bool), np.zeros(len(data), dtype=bool)
    poisoned[rows] = True
    if cover is not None:
        is_cover[cover] = True
    return PoisonTruth(
        poisoned=poisoned,
        cover=is_cover,
        original_labels=data.labels.copy(),
        attack=attack,
        target=target,
    )
