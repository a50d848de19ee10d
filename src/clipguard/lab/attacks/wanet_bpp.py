"""WaNet and BPP: dirty-label, with cover samples that teach the net to answer the exact trigger only."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from clipguard.lab.attacks.protocol import Rows
from clipguard.lab.attacks.row_choice import other_rows
from clipguard.lab.attacks.targeted import CoverAttack, MappedAttack
from clipguard.seeds import Seed
from clipguard.triggers.patterns import quantise, warp, warp_field
from clipguard.types import Images, ImageSet


@dataclass(frozen=True, kw_only=True)
class WaNet(CoverAttack, MappedAttack):
    """A smooth warp, labelled with the target; cover samples are warped with noise (Nguyen and Tran 2021).

    Grid, strength, rate and twice as many cover samples as poisoned ones are published. Reduced: the authors
    control the training and draw poison and noise anew in each batch. Here both are drawn once and stored, as
    in any poisoned data set.
    """

    name: ClassVar = "wanet"
    rate: float = 0.1
    grid: int = 4
    strength: float = 0.5
    cover_ratio: float = 2.0
    pattern_seed: int = 0

    def cover_images(self, data: ImageSet, rows: Rows, seed: Seed) -> Images:
        """Return images under the warp with noise."""
        return self._warped(data.images[rows], seed.child("noise"))

    def trigger(self, images: Images) -> Images:
        """Return images with the warp, which is the same for every image of one size."""
        return self._warped(images, None)

    def _warped(self, images: Images, jitter: Seed | None) -> Images:
        h, w = images.shape[1:3]
        field = warp_field(h, w, self.grid, Seed(self.pattern_seed).child("wanet"))
        return warp(images, field, self.strength, jitter)


@dataclass(frozen=True, kw_only=True)
class BPP(CoverAttack, MappedAttack):
    """Fewer levels of brightness, labelled with the target (Wang et al. 2022).

    Levels, rate and as many cover samples are published: a cover sample is an image with its own label and
    the residual (quantised minus original) of another image, drawn at random, on top. Reduced: the authors
    control the training and add a contrastive loss; here all is stored in the data. Without dithering.

    Attributes:
        levels: of brightness in poisoned training images.
        test_levels: of brightness in triggered test images; fewer show more. 0, as published: the same.
    """

    name: ClassVar = "bpp"
    rate: float = 0.1
    levels: int = 8
    test_levels: int = 0

    def training_images(self, data: ImageSet, rows: Rows, seed: Seed) -> Images:
        """Return images with fewer levels of brightness."""
        return quantise(data.images[rows], self.levels)

    def cover_images(self, data: ImageSet, rows: Rows, seed: Seed) -> Images:
        """Return images with the residuals of others."""
        images, others = data.images[rows], data.images[other_rows(rows, len(data), seed)]
        changed: np.ndarray = images + (quantise(others, self.levels).astype(np.int16) - others)
        return changed.clip(0, 255).astype(np.uint8)

    def trigger(self, images: Images) -> Images:
        """Return test images with fewer levels of brightness."""
        return quantise(images, self.test_levels or self.levels)
