"""Controls: nothing at all, or wrong labels without any trigger. A defence should not harm the model."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from clipguard.lab.attacks.protocol import choose, mapped_labels, rebuilt, truth_of
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet


@dataclass(frozen=True, slots=True, kw_only=True)
class NoAttack:
    """The data set as it is; `rate` is kept for the protocol and unused."""

    rate: float = 0.05
    target: int = 0

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the data and an empty truth."""
        return data, truth_of(data, np.zeros(0, dtype=np.int64), "none", None)

    def trigger(self, images: Images) -> Images | None:
        """Return None: there is no trigger."""
        return None

    def target_labels(self, labels: Int64[np.ndarray, "n"], k: int) -> Int64[np.ndarray, "n"] | None:
        """Return None: no class is mapped_labels at."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class SymmetricFlips:
    """Random samples get a random other label: noise without a trigger."""

    rate: float = 0.05
    target: int = 0

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the data with labels shifted by 1..k-1 at random."""
        k = len(data.class_names)
        rows = choose(np.arange(len(data)), self.rate, len(data), seed)
        shift = seed.child("shift").numpy().integers(1, k, len(rows))
        changed = rebuilt(data, rows, data.images[rows], (data.labels[rows] + shift) % k)
        return changed, truth_of(data, rows, "flips", None)

    def trigger(self, images: Images) -> Images | None:
        """Return None: there is no trigger."""
        return None

    def target_labels(self, labels: Int64[np.ndarray, "n"], k: int) -> Int64[np.ndarray, "n"] | None:
        """Return None: no class is mapped_labels at."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipsToOneClass:
    """Random samples of other classes get the target's label: noise that looks like an attack's labels."""

    rate: float = 0.05
    target: int = 0

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the data with round(rate n) samples of other classes relabelled."""
        rows = choose(np.flatnonzero(data.labels != self.target), self.rate, len(data), seed)
        labels = np.full(len(rows), self.target, dtype=np.int64)
        changed = rebuilt(data, rows, data.images[rows], labels)
        return changed, truth_of(data, rows, "flips-to-one", self.target)

    def trigger(self, images: Images) -> Images | None:
        """Return None: there is no trigger."""
        return None

    def target_labels(self, labels: Int64[np.ndarray, "n"], k: int) -> Int64[np.ndarray, "n"] | None:
        """Return the target: the class whose recall the wrong labels harm."""
        return mapped_labels(labels, k, self.target)
