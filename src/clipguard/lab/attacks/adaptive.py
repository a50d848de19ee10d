"""Attacks that adapt to latent-space defences: few poisons, each with a part of the trigger, and cover."""

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from jaxtyping import Float32, UInt8

from clipguard.lab.attacks.protocol import Rows
from clipguard.lab.attacks.targeted import CoverAttack
from clipguard.seeds import Seed
from clipguard.triggers.patterns import blend, corners, noise_pattern, piece_masks
from clipguard.types import Images, ImageSet

OPACITIES: Final = (0.5, 0.2, 0.5, 0.3)
"""Of the four patches of Adap-Patch in training."""


@dataclass(frozen=True, kw_only=True)
class AdapBlend(CoverAttack):
    """Half of the 16 pieces of a blended pattern, weaker than in test; as much cover (Qi et al. 2023).

    Rates, pieces and both strengths are published; the pattern is chosen: noise as in `Blended`, no
    photograph.
    """

    name: ClassVar = "adap-blend"
    rate: float = 0.003
    alpha: float = 0.15
    test_alpha: float = 0.2
    pieces: int = 4
    pattern_seed: int = 0

    def training_images(self, data: ImageSet, rows: Rows, seed: Seed) -> Images:
        """Return images with half of the pieces each."""
        return self._in_part(data.images[rows], seed.child("pieces"))

    def cover_images(self, data: ImageSet, rows: Rows, seed: Seed) -> Images:
        """Return images with the same kind of trigger."""
        return self._in_part(data.images[rows], seed.child("cover", "pieces"))

    def trigger(self, images: Images) -> Images:
        """Return test images, which carry the whole pattern and more of it."""
        return blend(images, self._pattern(images), self.test_alpha)

    def _in_part(self, images: Images, seed: Seed) -> Images:
        n, h, w, _ = images.shape
        mask = piece_masks(n, h, w, self.pieces, seed)
        return blend(images, self._pattern(images), mask * np.float32(self.alpha))

    def _pattern(self, images: Images) -> UInt8[np.ndarray, "h w 3"]:
        return noise_pattern(images.shape[1], images.shape[2], Seed(self.pattern_seed).child("adap-blend"))


@dataclass(frozen=True, kw_only=True)
class AdapPatch(CoverAttack):
    """Four weak patches, each poison with one of them in turn; twice as much cover (Qi et al. 2023).

    Rates and opacities are published. Chosen: the patches are squares of noise, one a corner and a quarter of
    the shorter side wide, instead of pictures; test images carry all four at full opacity.
    """

    name: ClassVar = "adap-patch"
    rate: float = 0.003
    cover_ratio: float = 2.0
    pattern_seed: int = 0

    def training_images(self, data: ImageSet, rows: Rows, seed: Seed) -> Images:
        """Return images with one weak patch each."""
        weak = corners(*data.images.shape[1:3]) * np.array(OPACITIES, dtype=np.float32)[:, None, None]
        return self._mixed(data.images[rows], weak[np.arange(len(rows)) % len(OPACITIES)])

    def cover_images(self, data: ImageSet, rows: Rows, seed: Seed) -> Images:
        """Return images with one weak patch each."""
        return self.training_images(data, rows, seed)

    def trigger(self, images: Images) -> Images:
        """Return test images, which carry all four patches at full opacity."""
        opaque: np.ndarray = np.logical_or.reduce(corners(*images.shape[1:3]))[None].astype(np.float32)
        return self._mixed(images, opaque)

    def _mixed(self, images: Images, opacity: Float32[np.ndarray, "#n h w"]) -> Images:
        pattern = noise_pattern(images.shape[1], images.shape[2], Seed(self.pattern_seed).child("adap-patch"))
        return blend(images, pattern, opacity)
