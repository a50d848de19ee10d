"""What every attack is: a frozen dataclass that poisons a training set, and puts its trigger on images."""

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from clipguard.errors import ClipguardError
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet, Progress

Labels = Int64[np.ndarray, "n"]
Rows = Int64[np.ndarray, "_"]
"""Numbers of some samples."""


class Attack(ABC):
    """What is done to the training set and to test images."""

    @property
    @abstractmethod
    def rate(self) -> float:
        """Fraction of all samples that are poisoned."""

    @property
    @abstractmethod
    def target(self) -> int:
        """Class that the backdoor leads to; unused where each class leads to another one."""

    def fit(self, data: ImageSet, seed: Seed, cache: Path | None, progress: Progress) -> "Attack":
        """Return the same attack with what it learned from `data`, or from an earlier fit in `cache`.

        Raises:
            ClipguardError: it cannot be fitted to `data`.
        """
        return self

    @abstractmethod
    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned set and the truth about it; untouched samples stay bit-identical.

        Raises:
            ClipguardError: the rate asks for more samples than there are, the target is no class, or the
                attack has learned nothing, or of other data.
        """

    @abstractmethod
    def trigger(self, images: Images) -> Images | None:
        """Return test images with the trigger, or None for a control, which has none.

        Raises:
            ClipguardError: the attack has learned nothing, or of images of another size.
        """

    @abstractmethod
    def target_labels(self, labels: Labels, k: int) -> Labels | None:
        """Return the class, of k, that the trigger is to give each true class; None where there is none."""


def triggered(attack: Attack, images: Images) -> Images | None:
    """Return test images with the attack's trigger, None for a control, which has none.

    Raises:
        ClipguardError: it changes no image: a wave, say, may be zero at every column of some widths.
    """
    changed = attack.trigger(images)
    if changed is not None and len(images) and np.array_equal(changed, images):
        h, w = images.shape[1:3]
        raise ClipguardError(
            f"the trigger changes no pixel of images of {h} x {w}: choose another size or attack"
        )
    return changed
