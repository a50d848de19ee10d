"""Several attackers who poison one data set at once, each with an own trigger and target."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int64

from clipguard.errors import ClipguardError
from clipguard.lab.attacks.protocol import Attack, NeedsFitting, Progress, prepare
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet, image_set

TOGETHER: Final = "together:"
"""What the name of several attacks at once begins with; their own names follow, joined by +."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Two or more attacks at once: each poisons rows that the ones before it have left alone.

    There is no common trigger: attack success is measured with the trigger and the target_labels of each of `parts`.
    """

    attacks: tuple[Attack | NeedsFitting, ...]

    def __post_init__(self) -> None:
        if len(self.attacks) < 2:
            raise ClipguardError(
                f"{TOGETHER} names {len(self.attacks)} attack: name two or more, joined by +"
            )

    @property
    def rate(self) -> float:
        """Fraction of all samples that are poisoned, by all attacks."""
        return sum(attack.rate for attack in self.attacks)

    @property
    def target(self) -> int:
        """Class that the first backdoor leads to."""
        return self.attacks[0].target

    @property
    def parts(self) -> tuple[Attack, ...]:
        """The attacks.

        Raises:
            ClipguardError: one of them still lacks its helper net.
        """
        ready = tuple(part for part in self.attacks if isinstance(part, Attack))
        if len(ready) < len(self.attacks):
            raise ClipguardError("an attack of several needs a helper net: prepare them first")
        return ready

    def prepare(self, data: ImageSet, seed: Seed, cache: Path | None, report: Progress | None) -> "Together":
        """Return the same attacks, each with its helper net if it needs one."""
        ready = [prepare(a, data, seed.child(i), cache, report) for i, a in enumerate(self.attacks)]
        return replace(self, attacks=tuple(ready))

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned set, and a truth that says in `part` which attack changed a sample.

        Raises:
            ClipguardError: an attack finds too few samples that the others have left.
        """
        n, names = len(data), list[str]()
        images, labels = np.array(data.images), data.labels.copy()
        poisoned, cover, part = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool), np.full(n, -1)
        for i, attack in enumerate(self.parts):
            left = np.flatnonzero(part < 0)
            # The rate counts over all samples, not over those that are left.
            recipe: Any = attack
            changed, truth = replace(recipe, rate=round(attack.rate * n) / max(1, len(left))).poison(
                data.take(left), seed.child(i)
            )
            images[left], labels[left] = changed.images, changed.labels
            poisoned[left], cover[left] = truth.poisoned, truth.cover
            part[left[truth.poisoned | truth.cover]] = i
            names.append(truth.attack)
        told = PoisonTruth(
            poisoned=poisoned,
            cover=cover,
            original_labels=data.labels.copy(),
            attack=TOGETHER + "+".join(names),
            target=None,
            part=part,
        )
        return image_set(images, labels, data.class_names, data.ids), told

    def trigger(self, images: Images) -> Images | None:
        """Return None: each part has a trigger of its own."""
        return None

    def target_labels(self, labels: Int64[np.ndarray, "n"], k: int) -> Int64[np.ndarray, "n"] | None:
        """Return None: each part has an target_labels of its own."""
        return None
