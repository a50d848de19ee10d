"""Attacks that put a fixed trigger on images: BadNets, Blended (dirty-label), SIG and CTRL (clean-label)."""

from dataclasses import dataclass

import numpy as np

from clipguard.lab.attacks.poisoning import apply_poison
from clipguard.lab.attacks.protocol import MappedAttack, Mapping, TargetedAttack
from clipguard.lab.attacks.row_choice import choose, choose_of_class
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.seeds import Seed
from clipguard.triggers.patterns import (
    add_pattern,
    add_sinusoid,
    blend,
    chroma_waves,
    noise_pattern,
    paste_patch,
)
from clipguard.types import Images, ImageSet


@dataclass(frozen=True, slots=True, kw_only=True)
class BadNets(MappedAttack):
    """A white square in the bottom-right corner, labelled with the target (Gu et al. 2017).

    Its side is `size` pixels on images of up to 32, as published, and grows with larger ones.
    """

    size: int = 3
    mapping: Mapping = "all-to-one"

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned set: rows are drawn from all classes, as BackdoorBench does."""
        rows = choose(np.arange(len(data)), self.rate, len(data), seed)
        return apply_poison(self, data, "badnets", rows, self.trigger(data.images[rows]))

    def trigger(self, images: Images) -> Images:
        """Return images with the square."""
        side = min(images.shape[1:3])
        return paste_patch(images, max(self.size, round(self.size * side / 32)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Blended(MappedAttack):
    """A fixed noise image mixed in at `alpha`, labelled with the target (Chen et al. 2017)."""

    alpha: float = 0.2
    pattern_seed: int = 0
    mapping: Mapping = "all-to-one"

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned set: rows are drawn from all classes, as BackdoorBench does."""
        rows = choose(np.arange(len(data)), self.rate, len(data), seed)
        return apply_poison(self, data, "blended", rows, self.trigger(data.images[rows]))

    def trigger(self, images: Images) -> Images:
        """Return images with the pattern, which is the same for every image of one size."""
        pattern = noise_pattern(images.shape[1], images.shape[2], Seed(self.pattern_seed).child("blended"))
        return blend(images, pattern, self.alpha)


@dataclass(frozen=True, slots=True, kw_only=True)
class SIG(TargetedAttack):
    """A sinusoid over the columns of target-class images whose labels stay (Barni et al. 2019)."""

    amplitude: float = 40.0
    frequency: float = 6.0

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned set; the rate counts over all samples, the rows are of the target class.

        Raises:
            ClipguardError: the target class is smaller than the rate asks for.
        """
        rows = choose_of_class(data, self.target, self.rate, seed)
        return apply_poison(self, data, "sig", rows, self.trigger(data.images[rows]))

    def trigger(self, images: Images) -> Images:
        """Return images with the sinusoid."""
        return add_sinusoid(images, self.amplitude, self.frequency)


@dataclass(frozen=True, slots=True, kw_only=True)
class CTRL(TargetedAttack):
    """Two frequencies of the colour planes of target-class images whose labels stay (Li et al. 2023).

    The formula is the published one in floating point. The published code also rounds to whole numbers in
    YUV, and knows 32 x 32 pixels only; for other sizes see `chroma_waves`. It changes colours alone: on grey
    data, which stay grey, nothing of it is left but rounding.
    """

    magnitude: float = 100.0

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned set; the rate counts over all samples, the rows are of the target class.

        Raises:
            ClipguardError: the target class is smaller than the rate asks for.
        """
        rows = choose_of_class(data, self.target, self.rate, seed)
        return apply_poison(self, data, "ctrl", rows, self.trigger(data.images[rows]))

    def trigger(self, images: Images) -> Images:
        """Return images with the two frequencies added."""
        return add_pattern(images, chroma_waves(images.shape[1], images.shape[2], self.magnitude))
