"""WaNet and BPP: dirty-label, with cover samples that teach the net to answer the exact trigger only."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from clipguard.lab.attacks.protocol import Mapping
from clipguard.lab.attacks.row_choice import choose_both
from clipguard.lab.attacks.targeted import MappedAttack, apply_poison
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.seeds import Seed
from clipguard.triggers.patterns import quantise, warp, warp_field
from clipguard.types import Images, ImageSet


@dataclass(frozen=True, slots=True, kw_only=True)
class WaNet(MappedAttack):
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
    mapping: Mapping = "all-to-one"

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned set; poison and cover samples are drawn from all classes.

        Raises:
            ClipguardError: poison and cover samples together are more than the data.
        """
        rows, cover = choose_both(len(data), self.rate, self.cover_ratio, seed)
        cover_images = self._warped(data.images[cover], seed.child("noise"))
        return apply_poison(self, data, rows, self.trigger(data.images[rows]), (cover, cover_images))

    def trigger(self, images: Images) -> Images:
        """Return images with the warp, which is the same for every image of one size."""
        return self._warped(images, None)

    def _warped(self, images: Images, jitter: Seed | None) -> Images:
        h, w = images.shape[1:3]
        field = warp_field(h, w, self.grid, Seed(self.pattern_seed).child("wanet"))
        return warp(images, field, self.strength, jitter)


@dataclass(frozen=True, slots=True, kw_only=True)
class BPP(MappedAttack):
    """Fewer levels of brightness, labelled with the target (Wang et al. 2022).

    Levels, rate and as many cover samples are published: a cover sample is an image with its own label and
    the residual (quantised minus original) of another image, drawn at random, on top. Reduced: the authors
    control the training and add a contrastive loss; here all is stored in the data. Without dithering.

    Attributes:
        rate: fraction of all samples that are poisoned, drawn from all classes.
        target: their new label, unless each class leads to the next.
        levels: of brightness in poisoned training images.
        cover_ratio: cover samples for each poisoned one.
        mapping: to the target, or each class to the next one; both are published.
        test_levels: of brightness in triggered test images; fewer show more. 0, as published: the same.
    """

    name: ClassVar = "bpp"
    rate: float = 0.1
    levels: int = 8
    cover_ratio: float = 1.0
    mapping: Mapping = "all-to-one"
    test_levels: int = 0

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned set; poison and cover samples are drawn from all classes.

        Raises:
            ClipguardError: poison and cover samples together are more than the data.
        """
        n = len(data)
        rows, cover = choose_both(n, self.rate, self.cover_ratio, seed)
        others = (cover + seed.child("others").numpy().integers(1, max(2, n), len(cover))) % max(1, n)
        cover_images = self._with_residuals(data.images[cover], data.images[others])
        images = quantise(data.images[rows], self.levels)
        return apply_poison(self, data, rows, images, (cover, cover_images))

    def trigger(self, images: Images) -> Images:
        """Return test images with fewer levels of brightness."""
        return quantise(images, self.test_levels or self.levels)

    def _with_residuals(self, images: Images, others: Images) -> Images:
        changed: np.ndarray = images + (quantise(others, self.levels).astype(np.int16) - others)
        return changed.clip(0, 255).astype(np.uint8)
