"""Retraining drops samples for good: how many it may drop without being told to."""

from typing import Final

import numpy as np

from clipguard.errors import ClipguardError
from clipguard.types import ImageSet, Partition, State

LARGEST_DROP: Final = 0.2
"""Share of the data: as many as the entropy map takes for candidates, at most. More are no minority that the
method can tell from the rest; of some hundred clean images, up to a third were flagged."""

LARGEST_CLASS_DROP: Final = 0.5
"""Share of a class: beyond it, most of what the source calls so would be gone, which is for people to judge.
Poison of 5 % exceeds it where there are many classes."""


def check_drop(data: ImageSet, partition: Partition) -> None:
    """Refuse a retraining that would leave out much of the data, or of one class.

    Raises:
        ClipguardError: more than `LARGEST_DROP` of all samples, or more than `LARGEST_CLASS_DROP` of a class,
            are flagged or excluded.
    """
    dropped = partition.flagged | partition.has(State.EXCLUDED)
    sizes = np.bincount(data.labels, minlength=len(data.class_names))
    lost = np.bincount(data.labels[dropped], minlength=len(sizes))
    worst = int(np.argmax(lost / np.maximum(sizes, 1)))
    if lost.sum() <= LARGEST_DROP * len(data) and lost[worst] <= LARGEST_CLASS_DROP * sizes[worst]:
        return
    raise ClipguardError(
        f"retraining would drop {lost.sum():,} of {len(data):,} samples ({lost.sum() / len(data):.0%}), of "
        f"class {data.class_names[worst]!r} {lost[worst]:,} of {sizes[worst]:,}: look at them in "
        "samples.parquet, then set drop_anyway, or unlearn them instead"
    )
