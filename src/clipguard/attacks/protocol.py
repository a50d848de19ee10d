"""What every attack is, and the two steps that all of them share."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from clipguard.errors import ClipguardError
from clipguard.seeds import Seed
from clipguard.truth import PoisonTruth
from clipguard.types import Images, ImageSet, image_set


@runtime_checkable
class Attack(Protocol):
    """A frozen dataclass with one recipe: what is done to the training set and to test images."""

    @property
    def rate(self) -> float:
        """Fraction of all samples that are poisoned."""
        ...

    @property
    def target(self) -> int:
        """Class that the backdoor leads to."""
        ...

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned set and the truth about it; untouched samples stay bit-identical."""
        ...

    def trigger(self, images: Images) -> Images | None:
        """Return test images with the trigger, or None for a control, which has none."""
        ...


Progress = Callable[[int, int], None]
"""Called with (done, total) while a helper net trains."""


@runtime_checkable
class NeedsHelper(Protocol):
    """An attack whose trigger, or choice of labels, is made by a net that is trained on the data first."""

    def prepare(self, data: ImageSet, seed: Seed, cache: Path | None, report: Progress | None) -> Attack:
        """Return the attack with its helper, trained on `data` or read from `cache`."""
        ...


def prepare(
    attack: Attack | NeedsHelper,
    data: ImageSet,
    seed: Seed,
    cache: Path | None = None,
    report: Progress | None = None,
) -> Attack:
    """Return an attack that is ready to poison `data`: its helper net, if it needs one, is trained.

    Helpers are cached in the folder `cache` by their recipe, the data's contents and the seed.
    """
    return attack.prepare(data, seed, cache, report) if isinstance(attack, NeedsHelper) else attack


def choose(candidates: Int64[np.ndarray, "m"], rate: float, n: int, seed: Seed) -> Int64[np.ndarray, "p"]:
    """Return round(rate n) rows drawn from `candidates` without replacement, ascending.

    Raises:
        ClipguardError: there are fewer candidates than that.
    """
    count = round(rate * n)
    if count > len(candidates):
        raise ClipguardError(
            f"poison rate {rate} asks for {count} of {n} samples but only {len(candidates)} can carry it: "
            "lower the rate or choose another target class"
        )
    return np.sort(seed.child("rows").numpy().choice(candidates, count, replace=False))


def rebuilt(
    data: ImageSet, rows: Int64[np.ndarray, "p"], images: Images, labels: Int64[np.ndarray, "p"]
) -> ImageSet:
    """Return `data` with other images and labels at `rows`.

    Raises:
        ClipguardError: a new label is no class of `data`.
    """
    k = len(data.class_names)
    if outside := sorted({int(label) for label in labels if not 0 <= label < k}):
        raise ClipguardError(f"target class {outside[0]} does not exist: choose one of 0 to {k - 1}")
    all_images, all_labels = np.array(data.images), data.labels.copy()
    all_images[rows], all_labels[rows] = images, labels
    return image_set(all_images, all_labels, data.class_names, data.ids)


def truth_of(data: ImageSet, rows: Int64[np.ndarray, "p"], attack: str, target: int | None) -> PoisonTruth:
    """Return the truth of an attack without cover samples that touched `rows`."""
    poisoned = np.zeros(len(data), dtype=bool)
    poisoned[rows] = True
    return PoisonTruth(
        poisoned=poisoned,
        cover=np.zeros(len(data), dtype=bool),
        original_labels=data.labels.copy(),
        attack=attack,
        target=target,
    )
