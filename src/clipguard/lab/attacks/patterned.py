"""Attacks that put a fixed trigger on images: BadNets, Blended (dirty-label), SIG and CTRL (clean-label)."""

from dataclasses import dataclass
from typing import ClassVar

from clipguard.lab.attacks.targeted import CleanLabelAttack, MappedAttack
from clipguard.seeds import Seed
from clipguard.triggers.patterns import (
    add_pattern,
    add_sinusoid,
    blend,
    chroma_waves,
    noise_pattern,
    paste_patch,
)
from clipguard.types import Images


@dataclass(frozen=True, kw_only=True)
class BadNets(MappedAttack):
    """A white square in the bottom-right corner, labelled with the target (Gu et al. 2017).

    Its side is `size` pixels on images of up to 32, as published, and grows with larger ones.
    """

    name: ClassVar = "badnets"
    size: int = 3

    def trigger(self, images: Images) -> Images:
        """Return images with the square."""
        side = min(images.shape[1:3])
        return paste_patch(images, max(self.size, round(self.size * side / 32)))


@dataclass(frozen=True, kw_only=True)
class Blended(MappedAttack):
    """A fixed noise image mixed in at `alpha`, labelled with the target (Chen et al. 2017)."""

    name: ClassVar = "blended"
    alpha: float = 0.2
    pattern_seed: int = 0

    def trigger(self, images: Images) -> Images:
        """Return images with the pattern, which is the same for every image of one size."""
        pattern = noise_pattern(images.shape[1], images.shape[2], Seed(self.pattern_seed).child("blended"))
        return blend(images, pattern, self.alpha)


@dataclass(frozen=True, kw_only=True)
class SIG(CleanLabelAttack):
    """A sinusoid over the columns of target-class images whose labels stay (Barni et al. 2019)."""

    name: ClassVar = "sig"
    amplitude: float = 40.0
    frequency: float = 6.0

    def trigger(self, images: Images) -> Images:
        """Return images with the sinusoid."""
        return add_sinusoid(images, self.amplitude, self.frequency)


@dataclass(frozen=True, kw_only=True)
class CTRL(CleanLabelAttack):
    """Two frequencies of the colour planes of target-class images whose labels stay (Li et al. 2023).

    The formula is the published one in floating point. On larger images the published code repeats it in
    windows of 32 pixels; here one transform spans the image, see `chroma_waves`. It changes colours alone: on
    grey data, which stay grey, nothing of it is left but rounding.
    """

    name: ClassVar = "ctrl"
    magnitude: float = 100.0

    def trigger(self, images: Images) -> Images:
        """Return images with the two frequencies added."""
        return add_pattern(images, chroma_waves(images.shape[1], images.shape[2], self.magnitude))
