"""Attacks that adapt to latent-space defences: few poisons, each with a part of the trigger, and cover."""

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from jaxtyping import Float32, UInt8

from clipguard.lab.attacks.row_choice import choose_both
from clipguard.lab.attacks.targeted import TargetedAttack, apply_poison
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.seeds import Seed
from clipguard.triggers.patterns import blend, corners, noise_pattern, piece_masks
from clipguard.types import Images, ImageSet

OPACITIES: Final = (0.5, 0.2, 0.5, 0.3)
"""Of the four patches of Adap-Patch in training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapBlend(TargetedAttack):
    """Half of the 16 pieces of a blended pattern, weaker than in test; as much cover (Qi et al. 2023).

    Rates, pieces and both strengths are published; the pattern is chosen: noise as in `Blended`, no
    photograph.
    """

    name: ClassVar = "adap-blend"
    rate: float = 0.003
    alpha: float = 0.15
    test_alpha: float = 0.2
    pieces: int = 4
    cover_ratio: float = 1.0
    pattern_seed: int = 0

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned set; cover samples carry the same kind of trigger and their own label.

        Raises:
            ClipguardError: poison and cover samples together are more than the data.
        """
        rows, cover = choose_both(len(data), self.rate, self.cover_ratio, seed)
        images = self._in_part(data.images[rows], seed.child("pieces"))
        cover_images = self._in_part(data.images[cover], seed.child("cover", "pieces"))
        return apply_poison(self, data, rows, images, (cover, cover_images))

    def trigger(self, images: Images) -> Images:
        """Return test images, which carry the whole pattern and more of it."""
        return blend(images, self._pattern(images), self.test_alpha)

    def _in_part(self, images: Images, seed: Seed) -> Images:
        n, h, w, _ = images.shape
        mask = piece_masks(n, h, w, self.pieces, seed)
        return blend(images, self._pattern(images), mask * np.float32(self.alpha))

    def _pattern(self, images: Images) -> UInt8[np.ndarray, "h w 3"]:
        return noise_pattern(images.shape[1], images.shape[2], Seed(self.pattern_seed).child("adap-blend"))


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapPatch(TargetedAttack):
    """Four weak patches, each poison with one of them in turn; twice as much cover (Qi et al. 2023).

    Rates and opacities are published. Chosen: the patches are squares of noise, one a corner and a quarter of
    the shorter side wide, instead of pictures; test images carry all four at full opacity.
    """

    name: ClassVar = "adap-patch"
    rate: float = 0.003
    cover_ratio: float = 2.0
    pattern_seed: int = 0

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned set; cover samples carry one patch each too, and their own label.

        Raises:
            ClipguardError: poison and cover samples together are more than the data.
        """
        rows, cover = choose_both(len(data), self.rate, self.cover_ratio, seed)
        images, cover_images = self._with_one(data.images[rows]), self._with_one(data.images[cover])
        return apply_poison(self, data, rows, images, (cover, cover_images))

    def trigger(self, images: Images) -> Images:
        """Return test images, which carry all four patches at full opacity."""
        opaque: np.ndarray = np.logical_or.reduce(corners(*images.shape[1:3]))[None].astype(np.float32)
        return self._mixed(images, opaque)

    def _with_one(self, images: Images) -> Images:
        weak = corners(*images.shape[1:3]) * np.array(OPACITIES, dtype=np.float32)[:, None, None]
        return self._mixed(images, weak[np.arange(len(images)) % len(OPACITIES)])

    def _mixed(self, images: Images, opacity: Float32[np.ndarray, "#n h w"]) -> Images:
        pattern = noise_pattern(images.shape[1], images.shape[2], Seed(self.pattern_seed).child("adap-patch"))
        return blend(images, pattern, opacity)
