"""Several attackers who poison one data set at once, each with an own trigger and target."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from clipguard.errors import ClipguardError
from clipguard.lab.attacks.protocol import Attack, Labels
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet, Progress

TOGETHER: Final = "together:"
"""What the name of several attacks at once begins with; their own names follow, joined by +."""


@dataclass(frozen=True, kw_only=True)
class Together(Attack):
    """Two or more attacks at once: each poisons rows that the ones before it have left alone.

    They share no trigger: attack success is measured with the trigger and the target labels of each attack.
    """

    attacks: tuple[Attack, ...]

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

    def fit(self, data: ImageSet, seed: Seed, cache: Path | None, progress: Progress) -> "Together":
        """Return the same attacks, each fitted if it learns from the data."""
        fitted = (a.fit(data, seed.child(i), cache, progress) for i, a in enumerate(self.attacks))
        return replace(self, attacks=tuple(fitted))

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned set, and a truth that says in `part` which attack changed a sample."""
        n, names = len(data), list[str]()
        images, labels = np.array(data.images), data.labels.copy()
        poisoned, cover, part = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool), np.full(n, -1)
        for i, attack in enumerate(self.attacks):
            left = np.flatnonzero(part < 0)
            # The rate counts over all samples, not over those that are left.
            own: Any = attack
            changed, truth = replace(own, rate=round(attack.rate * n) / max(1, len(left))).poison(
                data.take(left), seed.child(i)
            )
            images[left], labels[left] = changed.images, changed.labels
            poisoned[left], cover[left] = truth.poisoned, truth.cover
            part[left[truth.poisoned | truth.cover]] = i
            names.append(truth.attack)
        whole = PoisonTruth(
            poisoned=poisoned,
            cover=cover,
            original_labels=data.labels.copy(),
            attack=TOGETHER + "+".join(names),
            target=None,
            part=part,
        )
        return data.changed(images, labels), whole

    def trigger(self, images: Images) -> Images | None:
        """Return None: each attack has a trigger of its own."""
        return None

    def target_labels(self, labels: Labels, k: int) -> Labels | None:
        """Return None: each attack has target labels of its own."""
        return None
