"""Dirty-label attacks whose cover_images teach the net to answer the exact trigger only: WaNet and BPP."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from clipguard.lab.attacks.protocol import Mapping, choose_both, mapped_labels, planted
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.seeds import Seed
from clipguard.triggers.patterns import quantise, warp, warp_field
from clipguard.types import Images, ImageSet


@dataclass(frozen=True, slots=True, kw_only=True)
class WaNet:
    """A smooth warp, relabelled to what it leads to; cover_images are warped with noise (Nguyen and Tran 2021).

    Grid, strength, rate and twice as many cover_images as poisons are published. Reduced: the authors control the
    training and draw poison and noise anew in each batch; here both are drawn once and stored, as in any
    poisoned data set.
    """

    rate: float = 0.1
    target: int = 0
    grid: int = 4
    strength: float = 0.5
    cover_ratio: float = 2.0
    pattern_seed: int = 0
    mapping: Mapping = "all-to-one"

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned set; poison and cover_images are drawn from all classes.

        Raises:
            ClipguardError: poison and cover_images together are more than the data.
        """
        rows, cover = choose_both(len(data), self.rate, self.cover_ratio, seed)
        cover_images = self._warped(data.images[cover], seed.child("noise"))
        return planted(self, data, "wanet", rows, self.trigger(data.images[rows]), (cover, cover_images))

    def trigger(self, images: Images) -> Images:
        """Return images with the warp, which is the same for every image of one size."""
        return self._warped(images, None)

    def target_labels(self, labels: Int64[np.ndarray, "n"], k: int) -> Int64[np.ndarray, "n"]:
        """Return the target, or the next class."""
        return mapped_labels(labels, k, self.target, self.mapping)

    def _warped(self, images: Images, jitter: Seed | None) -> Images:
        h, w = images.shape[1:3]
        field = warp_field(h, w, self.grid, Seed(self.pattern_seed).child("wanet"))
        return warp(images, field, self.strength, jitter)


@dataclass(frozen=True, slots=True, kw_only=True)
class BPP:
    """Fewer levels of brightness, relabelled to what they lead to (Wang et al. 2022).

    Levels, rate and negatives, which are cover_images at the same rate, are published: a negative is an image with
    its own label and the residual (quantised minus original) of another image, drawn at random, on top.
    Reduced: the authors control the training and add a contrastive loss; here all is stored in the data.
    Without dithering.

    Attributes:
        rate: fraction of all samples that are poisoned, drawn from all classes.
        target: their new label, unless each class leads to the next.
        levels: of brightness in poisoned training images.
        cover_ratio: negatives for each poisoned sample.
        mapping: to the target, or each class to the next one; both are published.
        test_levels: of brightness in triggered test images; fewer show more. 0, as published: the same.
    """

    rate: float = 0.1
    target: int = 0
    levels: int = 8
    cover_ratio: float = 1.0
    mapping: Mapping = "all-to-one"
    test_levels: int = 0

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned set; poison and negatives are drawn from all classes.

        Raises:
            ClipguardError: poison and negatives together are more than the data.
        """
        n = len(data)
        rows, cover = choose_both(n, self.rate, self.cover_ratio, seed)
        others = (cover + seed.child("others").numpy().integers(1, max(2, n), len(cover))) % max(1, n)
        cover_images = self._negatives(data.images[cover], data.images[others])
        images = quantise(data.images[rows], self.levels)
        return planted(self, data, "bpp", rows, images, (cover, cover_images))

    def trigger(self, images: Images) -> Images:
        """Return test images with fewer levels of brightness."""
        return quantise(images, self.test_levels or self.levels)

    def target_labels(self, labels: Int64[np.ndarray, "n"], k: int) -> Int64[np.ndarray, "n"]:
        """Return the target, or the next class."""
        return mapped_labels(labels, k, self.target, self.mapping)

    def _negatives(self, images: Images, others: Images) -> Images:
        moved: np.ndarray = images + (quantise(others, self.levels).astype(np.int16) - others)
        return moved.clip(0, 255).astype(np.uint8)
