"""Whether a repair may mirror images: only where the model takes a mirrored image for what it was."""

from typing import Final

import numpy as np
from jaxtyping import Bool

from clipguard.compute.inference import classifier_logits
from clipguard.models.spec import Normalized
from clipguard.types import ImageSet

ASKED: Final = 200
"""Images of a class that are mirrored at most."""

IN_ALL: Final = 10_000
"""Images of all classes that are mirrored at most, but `FEWEST` of each."""

FEWEST: Final = 10
"""Images that a class must have for an opinion of its own."""

FALL: Final = 0.2
"""A class loses more than this share of its images where mirroring changes what they show.

Of models that were trained with mirrored images, no class lost more than 0.06. A sign that points to the left
loses nearly all of them: docs/experiments.md, section 24.
"""


def bears_mirroring(model: Normalized, data: ImageSet, clean: Bool[np.ndarray, "n"]) -> bool:
    """Return whether the model gives mirrored images of every class the label that it gives the originals.

    A model that was trained with mirrored images does. One that was not may have classes that differ by
    nothing else: arrows, digits, letters. A repair that mirrors them teaches it what is wrong.

    Args:
        model: before the repair.
        data: the poisoned set.
        clean: samples that are trusted; the others have no say.
    """
    return all(fall <= FALL for fall in falls_by_class(model, data, clean))


def falls_by_class(model: Normalized, data: ImageSet, clean: Bool[np.ndarray, "n"]) -> list[float]:
    """Return by how much each class's accuracy falls under mirroring, of classes with enough images."""
    falls, asked = [], max(FEWEST, min(ASKED, IN_ALL // len(data.class_names)))
    for label in range(len(data.class_names)):
        rows = np.flatnonzero(clean & (data.labels == label))
        if len(rows) < FEWEST:
            continue
        # Evenly, since neighbours may be frames of one video.
        some = rows[:: -(-len(rows) // asked)]
        images = data.take(some).images[:]
        right = [
            (classifier_logits(model, np.ascontiguousarray(view)).argmax(1) == label).mean()
            for view in (images, images[:, :, ::-1])
        ]
        falls.append(float(right[0] - right[1]))
    return falls
