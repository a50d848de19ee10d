"""Attacks on grey images: a coloured trigger among them would be seen at once, and is no test of anybody."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from clipguard.lab.attacks import protocol
from clipguard.lab.attacks.protocol import Attack, NeedsFitting, Progress
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet, image_set

_PIECE = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class OnGrey:
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
        """Return the poisoned set; untouched samples stay bit-identical.

        Raises:
            ClipguardError: as the attack itself.
        """
        changed, truth = self.attack.poison(data, seed)
        images, rows = np.array(changed.images), np.flatnonzero(truth.poisoned | truth.cover)
        images[rows] = greyed(images[rows])
        return image_set(images, changed.labels, changed.class_names, changed.ids), truth

    def trigger(self, images: Images) -> Images | None:
        """Return test images with the attack's trigger, made grey; None where it has none."""
        moved = self.attack.trigger(images)
        return None if moved is None else greyed(moved)

    def target_labels(self, labels: Int64[np.ndarray, "n"], k: int) -> Int64[np.ndarray, "n"] | None:
        """Return what the attack target_labels at."""
        return self.attack.target_labels(labels, k)


def prepare(
    attack: Attack | NeedsFitting,
    data: ImageSet,
    seed: Seed,
    cache: Path | None = None,
    report: Progress | None = None,
) -> Attack:
    """Return an attack that is ready to poison `data`: its helper net, if it needs one, is trained.

    Helpers are cached in the folder `cache` by their recipe, the data's contents and the seed. Where all of
    the data are grey, so is what the attack makes of them.
    """
    ready = protocol.prepare(attack, data, seed, cache, report)
    return OnGrey(attack=ready) if is_grey(data.images) else ready


def is_grey(images: Images) -> bool:
    """Return whether no image has a colour."""
    pieces = (images[start : start + _PIECE] for start in range(0, len(images), _PIECE))
    return all(bool((piece == piece[..., :1]).all()) for piece in pieces)


def greyed(images: Images) -> UInt8[np.ndarray, "n h w 3"]:
    """Return images whose three channels are 0.299 R + 0.587 G + 0.114 B, rounded (ITU-R BT.601)."""
    luma = np.rint(images.astype(np.float64) @ np.array([0.299, 0.587, 0.114]))
    return np.repeat(luma.clip(0, 255).astype(np.uint8)[..., None], 3, axis=3)
