"""Trigger augmentation: copies of clean samples with the reconstructed trigger, under their own labels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Final

import numpy as np
from jaxtyping import Int64

from clipguard.seeds import Seed
from clipguard.triggers.affine import AffineTrigger
from clipguard.types import Images, ImageSet, Partition, Scores, image_set

_PIECE: Final = 64
"""Images that are copied together."""

Join = Callable[[int, Iterator[Images]], Images]
"""Makes one array of so many images that come in pieces: in memory, or on disk where they might not fit."""


def in_memory(_: int, pieces: Iterator[Images]) -> Images:
    """Return all pieces as one array."""
    return np.concatenate(list(pieces))


def trigger_augmented(  # noqa: PLR0913  # what is copied, with what on it, how and where to: no two belong together
    data: ImageSet,
    partition: Partition,
    guide: Scores,
    triggers: Sequence[AffineTrigger],
    share: float,
    seed: Seed,
    join: Join = in_memory,
) -> tuple[ImageSet, Partition, Scores]:
    """Return all three, longer by clean copies of clean samples that carry a trigger.

    `share` of the clean samples are copied with each trigger. A class is copied the less, the larger its
    share of the flagged labels: the class that the trigger leads to needs no lesson in following it.
    """
    chosen = [_to_copy(data, partition, trigger, share, seed) for trigger in triggers]
    rows = np.concatenate([*chosen, np.zeros(0, np.int64)])
    originals = (data.images[i : i + _PIECE] for i in range(0, len(data), _PIECE))
    copies = (
        trigger.apply(data.images[some[i : i + _PIECE]])
        for trigger, some in zip(triggers, chosen, strict=True)
        for i in range(0, len(some), _PIECE)
    )
    images = join(len(data) + len(rows), chain(originals, copies))
    marks = (
        f"{data.ids[row]} with reconstructed trigger {number}"
        for number, some in enumerate(chosen)
        for row in some
    )
    labels = np.concatenate([data.labels, data.labels[rows]])
    longer = image_set(images, labels, data.class_names, (*data.ids, *marks))
    scores = replace(guide, logits=np.concatenate([guide.logits, guide.logits[rows]]))
    return longer, partition.extend(rows), scores


def _to_copy(
    data: ImageSet, partition: Partition, trigger: AffineTrigger, share: float, seed: Seed
) -> Int64[np.ndarray, "m"]:
    """Return the clean samples that are copied with the trigger."""
    clean = np.flatnonzero(partition.clean)
    if trigger.label is not None:
        weight = (data.labels[clean] != trigger.label).astype(np.float64)
        seed = seed.child("label", trigger.label)
    else:
        flagged = np.bincount(data.labels[partition.flagged], minlength=len(data.class_names))
        weight = 1 - flagged[data.labels[clean]] / max(1, flagged.sum())
    count = min(round(share * len(clean)), int((weight > 0).sum()))
    return seed.generator().choice(clean, count, replace=False, p=weight / weight.sum() if count else None)
