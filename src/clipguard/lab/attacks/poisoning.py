"""A data set with other images and labels at some rows, and the truth about them."""

import numpy as np

from clipguard.errors import ClipguardError
from clipguard.lab.attacks.protocol import Labels, Rows
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.types import Images, ImageSet


def check_classes(labels: Labels, k: int) -> None:
    """Refuse labels that are none of k classes.

    Raises:
        ClipguardError: one of them is no class.
    """
    if outside := sorted({int(label) for label in labels if not 0 <= label < k}):
        raise ClipguardError(f"target class {outside[0]} does not exist: choose one of 0 to {k - 1}")


def rebuilt(data: ImageSet, rows: Rows, images: Images, labels: Labels) -> ImageSet:
    """Return `data` with other images and labels at `rows`.

    Raises:
        ClipguardError: a new label is no class of `data`.
    """
    check_classes(labels, len(data.class_names))
    all_images, all_labels = np.array(data.images), data.labels.copy()
    all_images[rows], all_labels[rows] = images, labels
    return data.changed(all_images, all_labels)


def truth_of(
    data: ImageSet, rows: Rows, attack: str, target: int | None, cover: Rows | None = None
) -> PoisonTruth:
    """Return the truth of an attack that poisoned `rows` and made cover samples of the rows `cover`."""
    numbers = np.arange(len(data))
    return PoisonTruth(
        poisoned=np.isin(numbers, rows),
        cover=np.isin(numbers, [] if cover is None else cover),
        original_labels=data.labels.copy(),
        attack=attack,
        target=target,
    )
