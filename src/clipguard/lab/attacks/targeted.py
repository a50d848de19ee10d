"""Attacks with one target class, or one for each class: a dataclass with a name and a `trigger` is one."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from clipguard.errors import ClipguardError
from clipguard.lab.attacks.poisoning import rebuilt, truth_of
from clipguard.lab.attacks.protocol import Attack, Labels, Rows
from clipguard.lab.attacks.row_choice import choose, choose_cover
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet

MAPPINGS: Final = ("all-to-one", "all-to-all")
"""Every class to the target, or class y to y + 1 and the last one to 0."""


@dataclass(frozen=True, kw_only=True)
class TargetedAttack(Attack):
    """Puts its trigger on images of all classes, and labels them with the target.

    Attributes:
        rate: fraction of all samples that are poisoned.
        target: class that the backdoor leads to.
    """

    name: ClassVar[str]
    rate: float = 0.05
    target: int = 0

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned set and the truth about it."""
        k = len(data.class_names)
        target_mapping = self.target_labels(np.arange(k), k)
        assert target_mapping is not None
        rows = self.rows(data, seed)
        images = self.training_images(data, rows, seed)
        assert images is not None
        cover, cover_images = self.cover(data, rows, seed)
        changed = rebuilt(
            data,
            np.concatenate((rows, cover)),
            np.concatenate((images, cover_images)),
            np.concatenate((target_mapping[data.labels[rows]], data.labels[cover])),
        )
        target = int(target_mapping[0]) if (target_mapping == target_mapping[0]).all() else None
        return changed, truth_of(data, rows, self.name, target, cover)

    def candidates(self, data: ImageSet) -> Rows:
        """Return the rows that can be poisoned: of all classes."""
        return np.arange(len(data))

    def rows(self, data: ImageSet, seed: Seed) -> Rows:
        """Return the rows to poison: drawn at random; the rate counts over all samples."""
        return choose(self.candidates(data), self.rate, len(data), seed)

    def training_images(self, data: ImageSet, rows: Rows, seed: Seed) -> Images | None:
        """Return the images of `rows` as the training set carries them: with the trigger of test images."""
        return self.trigger(data.images[rows])

    def cover(self, data: ImageSet, rows: Rows, seed: Seed) -> tuple[Rows, Images]:
        """Return the rows of cover samples, which keep their labels, and their images: none."""
        return np.zeros(0, dtype=np.int64), data.images[:0]

    def target_labels(self, labels: Labels, k: int) -> Labels | None:
        """Return the target for every label."""
        return np.full_like(labels, self.target)


@dataclass(frozen=True, kw_only=True)
class MappedAttack(TargetedAttack):
    """A targeted attack that can send each class to another one.

    Attributes:
        mapping: one of `MAPPINGS`.
    """

    mapping: str = "all-to-one"

    def __post_init__(self) -> None:
        if self.mapping not in MAPPINGS:
            raise ClipguardError(f"unknown mapping {self.mapping!r}: choose one of {', '.join(MAPPINGS)}")

    def target_labels(self, labels: Labels, k: int) -> Labels | None:
        """Return the target, or the next class."""
        return (labels + 1) % k if self.mapping == "all-to-all" else np.full_like(labels, self.target)


class CleanLabelAttack(TargetedAttack):
    """A targeted attack that poisons images of the target class alone, whose labels stay."""

    def candidates(self, data: ImageSet) -> Rows:
        """Return the rows that can be poisoned: of the target class."""
        return np.flatnonzero(data.labels == self.target)


@dataclass(frozen=True, kw_only=True)
class CoverAttack(TargetedAttack):
    """A targeted attack with cover samples, which keep their labels.

    Attributes:
        cover_ratio: cover samples for each poisoned one.
    """

    cover_ratio: float = 1.0

    def cover(self, data: ImageSet, rows: Rows, seed: Seed) -> tuple[Rows, Images]:
        """Return the rows of cover samples, drawn from those that are left, and their images."""
        cover = choose_cover(rows, len(data), self.cover_ratio, seed)
        return cover, self.cover_images(data, cover, seed)

    @abstractmethod
    def cover_images(self, data: ImageSet, rows: Rows, seed: Seed) -> Images:
        """Return the images of `rows` as cover samples."""
