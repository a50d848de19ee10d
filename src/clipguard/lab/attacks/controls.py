"""Controls: nothing at all, or wrong labels without any trigger. A defence should not harm the model."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from clipguard.lab.attacks.poisoning import rebuilt, truth_of
from clipguard.lab.attacks.protocol import Labels, Rows
from clipguard.lab.attacks.targeted import TargetedAttack
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet


class Control(TargetedAttack):
    """What has no trigger; `rate` and `target` may be unused."""

    def training_images(self, data: ImageSet, rows: Rows, seed: Seed) -> Images:
        """Return the images as they are."""
        images: Images = data.images[rows]
        return images

    def trigger(self, images: Images) -> Images | None:
        """Return None: there is no trigger."""
        return None

    def target_labels(self, labels: Labels, k: int) -> Labels | None:
        """Return None: no trigger leads anywhere."""
        return None


@dataclass(frozen=True, kw_only=True)
class NoAttack(Control):
    """The data set as it is."""

    name: ClassVar = "none"

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the data and an empty truth."""
        return data, truth_of(data, np.zeros(0, dtype=np.int64), self.name, None)


@dataclass(frozen=True, kw_only=True)
class SymmetricFlips(Control):
    """Random samples get a random other label: noise without a trigger."""

    name: ClassVar = "flips"

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the data with labels shifted by 1..k-1 at random."""
        k, rows = len(data.class_names), self.rows(data, seed)
        shift = seed.child("shift").generator().integers(1, k, len(rows))
        changed = rebuilt(data, rows, data.images[rows], (data.labels[rows] + shift) % k)
        return changed, truth_of(data, rows, self.name, None)


@dataclass(frozen=True, kw_only=True)
class FlipsToOneClass(Control):
    """Random samples of other classes get the target's label: noise that looks like an attack's labels."""

    name: ClassVar = "flips-to-one"

    def candidates(self, data: ImageSet) -> Rows:
        """Return the rows that can be relabelled: of other classes than the target."""
        return np.flatnonzero(data.labels != self.target)

    def target_labels(self, labels: Labels, k: int) -> Labels | None:
        """Return the target: the class whose recall the wrong labels harm."""
        return np.full_like(labels, self.target)
