"""Attacks on grey images: a coloured trigger among them would stand out, and be no test of a defence."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from clipguard.lab.attacks.combined import Together
from clipguard.lab.attacks.protocol import Attack, Labels
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet, Progress

_PIECE = 256


@dataclass(frozen=True, kw_only=True)
class OnGrey(Attack):
    """An attack whose images, for training and for tests, are made grey again by their luma."""

    attack: Attack

    @property
    def rate(self) -> float:
        """Fraction of all samples that are poisoned."""
        return self.attack.rate

    @property
    def target(self) -> int:
        """Class that the backdoor leads to."""
        return self.attack.target

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned set, with poison and cover made grey."""
        changed, truth = self.attack.poison(data, seed)
        images, rows = np.array(changed.images), np.flatnonzero(truth.poisoned | truth.cover)
        images[rows] = greyed(images[rows])
        return changed.changed(images, changed.labels), truth

    def trigger(self, images: Images) -> Images | None:
        """Return test images with the attack's trigger, made grey; None where it has none."""
        changed = self.attack.trigger(images)
        return None if changed is None else greyed(changed)

    def target_labels(self, labels: Labels, k: int) -> Labels | None:
        """Return the target labels of the attack."""
        return self.attack.target_labels(labels, k)


def fit_attack(
    attack: Attack, data: ImageSet, seed: Seed, cache: Path | None = None, progress: Progress | None = None
) -> Attack:
    """Return an attack that can poison `data`: fitted if it learns, and grey where all of the data are grey.

    A fit is cached in the folder `cache` by the attack's settings, the data's contents and the seed.

    Raises:
        ClipguardError: the attack cannot be fitted to these data, or the rate asks for no sample at all.
    """
    fitted = attack.fit(data, seed, cache, progress or (lambda step, done, total: None))
    return OnGrey(attack=fitted) if is_grey(data.pixels) else fitted


def parts_of(attack: Attack) -> tuple[Attack, ...]:
    """Return the attacks whose triggers are measured one by one: the attack, or those of `Together`."""
    if isinstance(attack, OnGrey):
        return tuple(OnGrey(attack=part) for part in parts_of(attack.attack))
    return attack.attacks if isinstance(attack, Together) else (attack,)


def is_grey(images: Images) -> bool:
    """Return whether no image has a colour."""
    pieces = (images[start : start + _PIECE] for start in range(0, len(images), _PIECE))
    return all(bool((piece == piece[..., :1]).all()) for piece in pieces)


def greyed(images: Images) -> UInt8[np.ndarray, "n h w 3"]:
    """Return images whose three channels are 0.299 R + 0.587 G + 0.114 B, rounded (ITU-R BT.601)."""
    luma = np.rint(images.astype(np.float64) @ np.array([0.299, 0.587, 0.114]))
    return np.repeat(luma.clip(0, 255).astype(np.uint8)[..., None], 3, axis=3)
