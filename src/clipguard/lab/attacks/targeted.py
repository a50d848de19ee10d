"""Attacks with one target class, or one for each class: a dataclass with a name and a `trigger` is one."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int64, UInt8

from clipguard.lab.attacks.poisoning import rebuilt, truth_of
from clipguard.lab.attacks.protocol import Labels, Mapping, mapped_labels
from clipguard.lab.attacks.row_choice import choose, choose_of_class
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet

CoverSamples = tuple[Int64[np.ndarray, "c"], UInt8[np.ndarray, "c h w 3"]]
"""Rows of cover samples, and their images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetedAttack(ABC):
    """Puts its trigger on images of all classes, and labels them with the target.

    Attributes:
        rate: fraction of all samples that are poisoned.
        target: class that the backdoor leads to.
    """

    name: ClassVar[str]
    rate: float = 0.05
    target: int = 0

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned set and the truth about it: rows are drawn from all classes."""
        rows = choose(np.arange(len(data)), self.rate, len(data), seed)
        return apply_poison(self, data, rows, self.trigger(data.images[rows]))

    @abstractmethod
    def trigger(self, images: Images) -> Images | None:
        """Return images with the trigger; None for a control, which has none."""

    def target_labels(self, labels: Labels, k: int) -> Labels | None:
        """Return the target for every label."""
        return mapped_labels(labels, k, self.target)


class MappedAttack(TargetedAttack):
    """A targeted attack whose dataclass has a field `mapping`."""

    __slots__ = ()
    mapping: Mapping

    def target_labels(self, labels: Labels, k: int) -> Labels | None:
        """Return the target, or the next class."""
        return mapped_labels(labels, k, self.target, self.mapping)


class CleanLabelAttack(TargetedAttack):
    """A targeted attack that poisons images of the target class alone, whose labels stay."""

    __slots__ = ()

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned set and the truth about it; the rate counts over all samples.

        Raises:
            ClipguardError: the target class is smaller than the rate asks for.
        """
        rows = choose_of_class(data, self.target, self.rate, seed)
        return apply_poison(self, data, rows, self.trigger(data.images[rows]))


def apply_poison(
    attack: TargetedAttack,
    data: ImageSet,
    rows: Int64[np.ndarray, "p"],
    images: Images | None,
    cover: CoverSamples | None = None,
) -> tuple[ImageSet, PoisonTruth]:
    """Return `data` with `images` and the attack's target labels at `rows`, and the truth.

    Args:
        attack: gives the target labels and its name.
        data: the clean data set.
        rows: samples to poison.
        images: theirs, with the trigger.
        cover: rows and images of cover samples, which keep their labels.

    Raises:
        ClipguardError: the target is no class of `data`.
    """
    k = len(data.class_names)
    labels, target_mapping = attack.target_labels(data.labels[rows], k), attack.target_labels(np.arange(k), k)
    assert images is not None
    assert labels is not None
    assert target_mapping is not None
    target = int(target_mapping[0]) if (target_mapping == target_mapping[0]).all() else None
    cover_rows, cover_images = cover or (None, None)
    changed = rebuilt(data, rows, images, labels, cover_rows, cover_images)
    return changed, truth_of(data, rows, attack.name, target, cover_rows)
