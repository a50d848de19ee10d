"""Controls: nothing at all, or wrong labels without any trigger. A defence should not harm the model."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from clipguard.lab.attacks.poisoning import rebuilt, truth_of
from clipguard.lab.attacks.protocol import Labels
from clipguard.lab.attacks.row_choice import choose
from clipguard.lab.attacks.targeted import TargetedAttack
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet


class Control(TargetedAttack):
    """What has no trigger; `rate` and `target` are there for the protocol, and may be unused."""

    __slots__ = ()

    def trigger(self, images: Images) -> Images | None:
        """Return None: there is no trigger."""
        return None

    def target_labels(self, labels: Labels, k: int) -> Labels | None:
        """Return None: no trigger leads anywhere."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class NoAttack(Control):
    """The data set as it is."""

    name: ClassVar = "none"

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the data and an empty truth."""
        return data, truth_of(data, np.zeros(0, dtype=np.int64), self.name, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SymmetricFlips(Control):
    """Random samples get a random other label: noise without a trigger."""

    name: ClassVar = "flips"

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the data with labels shifted by 1..k-1 at random."""
        k = len(data.class_names)
        rows = choose(np.arange(len(data)), self.rate, len(data), seed)
        shift = seed.child("shift").numpy().integers(1, k, len(rows))
        changed = rebuilt(data, rows, data.images[rows], (data.labels[rows] + shift) % k)
        return changed, truth_of(data, rows, self.name, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipsToOneClass(Control):
    """Random samples of other classes get the target's label: noise that looks like an attack's labels."""

    name: ClassVar = "flips-to-one"

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the data with round(rate n) samples of other classes relabelled."""
        rows = choose(np.flatnonzero(data.labels != self.target), self.rate, len(data), seed)
        labels = np.full(len(rows), self.target, dtype=np.int64)
        changed = rebuilt(data, rows, data.images[rows], labels)
        return changed, truth_of(data, rows, self.name, self.target)

    def target_labels(self, labels: Labels, k: int) -> Labels | None:
        """Return the target: the class whose recall the wrong labels harm."""
        return np.full_like(labels, self.target)
