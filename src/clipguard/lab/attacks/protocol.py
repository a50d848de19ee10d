"""What every attack is: a frozen dataclass that poisons a training set, and puts its trigger on images."""

from pathlib import Path
from typing import Final, Literal, Protocol, TypeVar, get_args, runtime_checkable

import numpy as np
from jaxtyping import Int64

from clipguard.errors import ClipguardError
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet, Progress

Mapping = Literal["all-to-one", "all-to-all"]
"""Every class to the target, or class y to y + 1 and the last one to 0."""

Labels = Int64[np.ndarray, "n"]
T = TypeVar("T")


@runtime_checkable
class Attack(Protocol):
    """What is done to the training set and to test images."""

    @property
    def rate(self) -> float:
        """Fraction of all samples that are poisoned."""
        ...

    @property
    def target(self) -> int:
        """Class that the backdoor leads to; unused where each class leads to another one."""
        ...

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned set and the truth about it; untouched samples stay bit-identical."""
        ...

    def trigger(self, images: Images) -> Images | None:
        """Return test images with the trigger, or None for a control, which has none."""
        ...

    def target_labels(self, labels: Labels, k: int) -> Labels | None:
        """Return the class, of k, that the trigger is to give each true class; None where there is none."""
        ...


@runtime_checkable
class LearnedAttack(Attack, Protocol):
    """An attack whose trigger, or choice of labels, is learned from the data by a net before it can poison.

    What it learned are fields with `default=None, compare=False, repr=False`: no options, and no part of what
    a fit is cached by. Without them, `poison` and `trigger` refuse.
    """

    def fit(self, data: ImageSet, seed: Seed, cache: Path | None, progress: Progress) -> Attack:
        """Return the same attack with what it learned from `data`, or from an earlier fit in `cache`."""
        ...


def required(state: T | None) -> T:
    """Return what a fit learned.

    Raises:
        ClipguardError: the attack has not been fitted.
    """
    if state is None:
        raise ClipguardError("the attack has learned nothing yet: call its fit first")
    return state


FITTING: Final = "fit the attack"
"""The step that a fit reports its progress as."""


def fit_learned(
    attack: Attack, data: ImageSet, seed: Seed, cache: Path | None = None, progress: Progress | None = None
) -> Attack:
    """Return the attack, fitted to `data` if it is a `LearnedAttack`.

    A fit is cached in the folder `cache` by the attack's settings, the data's contents and the seed.

    Raises:
        ClipguardError: the rate asks for no sample at all; nothing is trained then.
    """
    if not isinstance(attack, LearnedAttack):
        return attack
    if attack.rate and not round(attack.rate * len(data)):
        raise ClipguardError(f"poison rate {attack.rate:g} of {len(data)} images is none: give a higher rate")
    return attack.fit(data, seed, cache, progress or (lambda step, done, total: None))


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


def check_target(target: int, data: ImageSet) -> None:
    """Refuse a target that is no class, before anything is trained for it.

    Raises:
        ClipguardError: there is no such class.
    """
    if not 0 <= target < len(data.class_names):
        last = len(data.class_names) - 1
        raise ClipguardError(f"target class {target} does not exist: choose one of 0 to {last}")


def check_mapping(mapping: str) -> None:
    """Refuse what is no `Mapping`.

    Raises:
        ClipguardError: there is no mapping of that name.
    """
    if mapping not in get_args(Mapping):
        raise ClipguardError(f"unknown mapping {mapping!r}: choose one of {', '.join(get_args(Mapping))}")


def mapped_labels(labels: Labels, k: int, target: int, mapping: str = "all-to-one") -> Labels:
    """Return `target` for every label, or (label + 1) mod k where the mapping is all-to-all.

    Raises:
        ClipguardError: there is no mapping of that name.
    """
    check_mapping(mapping)
    return (labels + 1) % k if mapping == "all-to-all" else np.full_like(labels, target)
