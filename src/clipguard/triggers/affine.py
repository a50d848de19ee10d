"""The affine trigger: how it is applied to images, and its files in a run folder. Numpy only."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float32

from clipguard.errors import ClipguardError
from clipguard.runs import read_array, write_array
from clipguard.types import Images

_TRIGGERS: Final = "triggers.npy"
_LABELS: Final = "labels.npy"


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineTrigger:
    """A trigger of the form scale x + shift, value by value, in grey levels 0..255.

    Attributes:
        scale: factor of each value.
        shift: summand of each value, in grey levels.
        label: the class that the trigger leads to, where several triggers were separated by it, else None.
    """

    scale: Float32[np.ndarray, "h w 3"]
    shift: Float32[np.ndarray, "h w 3"]
    label: int | None = None

    def apply(self, images: Images) -> Images:
        """Return images with the trigger, rounded and clipped to 0..255."""
        triggered: np.ndarray = np.rint(self.scale * images.astype(np.float32) + self.shift)
        return triggered.clip(0, 255).astype(np.uint8)


def write_triggers(triggers: Sequence[AffineTrigger], folder: Path) -> None:
    """Write `folder`: the classes that the triggers lead to, and their scales and shifts, if any."""
    labels = [-1 if trigger.label is None else trigger.label for trigger in triggers]
    write_array(folder / _LABELS, np.array(labels, dtype=np.int64))
    if triggers:
        pairs = [np.stack([trigger.scale, trigger.shift]) for trigger in triggers]
        write_array(folder / _TRIGGERS, np.stack(pairs))


def read_triggers(folder: Path) -> tuple[AffineTrigger, ...]:
    """Return what `write_triggers` wrote.

    Raises:
        ClipguardError: the files are damaged.
    """
    labels = read_array(folder / _LABELS)
    if labels.shape == (0,):
        return ()
    pairs = read_array(folder / _TRIGGERS)
    if labels.dtype != np.int64 or pairs.shape[:2] != (*labels.shape, 2) or pairs.ndim != 5:
        raise ClipguardError(f"{folder} holds no triggers as they are written: delete it and run again")
    return tuple(
        AffineTrigger(scale=scale, shift=shift, label=None if label < 0 else label)
        for (scale, shift), label in zip(pairs, labels.tolist(), strict=True)
    )
