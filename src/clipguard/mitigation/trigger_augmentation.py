"""Trigger augmentation: copies of clean samples with the reconstructed trigger, under their own labels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from clipguard.seeds import Seed
from clipguard.triggers.affine import AffineTrigger
from clipguard.types import ImageSet, Partition, RowsAt, Scores, array_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class WithCopies:
    """Images, then copies of some of them with triggers, as `Rows`: a copy is made when it is asked for.

    Attributes:
        images: the originals first, then those that are copied.
        triggers: the reconstructed ones.
        number: which trigger each image carries, -1 for none.
    """

    images: RowsAt
    triggers: Sequence[AffineTrigger]
    number: Int64[np.ndarray, "n"]

    @property
    def shape(self) -> Any:
        """Number of images, then height, width and 3."""
        return self.images.shape

    def __len__(self) -> int:
        """Return the number of images, copies included."""
        return len(self.images)

    def __getitem__(self, rows: Any, /) -> UInt8[np.ndarray, "m h w 3"]:
        """Return the images of a slice or of an array of row numbers."""
        images, number = self.images[rows], self.number[rows]
        for n, trigger in enumerate(self.triggers):
            carry = number == n
            if carry.any():
                images[carry] = trigger.apply(images[carry])
        result: UInt8[np.ndarray, "m h w 3"] = images
        return result


def trigger_augmented(
    data: ImageSet,
    partition: Partition,
    guide: Scores,
    triggers: Sequence[AffineTrigger],
    share: float,
    seed: Seed,
) -> tuple[ImageSet, Partition, Scores]:
    """Return all three, longer by clean copies of clean samples that carry a trigger.

    `share` of the clean samples are copied with each trigger. A class is copied the less, the larger its
    share of the flagged labels: the class that the trigger leads to needs no lesson in following it.
    """
    chosen = [_to_copy(data, partition, trigger, share, seed) for trigger in triggers]
    rows = np.concatenate([*chosen, np.zeros(0, np.int64)])
    marks = (
        f"{data.ids[row]} with reconstructed trigger {number}"
        for number, some in enumerate(chosen)
        for row in some
    )
    changes = (array for trigger in triggers for array in (trigger.scale, trigger.shift))
    at = np.concatenate([np.arange(len(data)), rows])
    number = np.repeat(np.arange(-1, len(triggers)), [len(data), *map(len, chosen)])
    longer = replace(
        data,
        images=WithCopies(images=RowsAt(rows=data.images, at=at), triggers=triggers, number=number),
        labels=data.labels[at],
        ids=(*data.ids, *marks),
        fingerprint=array_digest(np.array([data.fingerprint]), at, number, *changes),
    )
    return longer, partition.extend(rows), replace(guide, logits=RowsAt(rows=guide.logits, at=at))


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
