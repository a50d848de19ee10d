"""Narcissus: noise that looks more like the target class than its own images do, on a handful of them."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from clipguard.lab.attacks.cache import Tensors
from clipguard.lab.attacks.protocol import Rows
from clipguard.lab.attacks.surrogate import Pattern, SurrogateAttack, misleading
from clipguard.lab.attacks.targeted import CleanLabelAttack
from clipguard.seeds import Seed
from clipguard.triggers.patterns import add_pattern
from clipguard.types import Images, ImageSet, Progress


@dataclass(frozen=True, kw_only=True)
class Narcissus(SurrogateAttack, CleanLabelAttack):
    """Clean-label: universal noise towards the target on few of its images, after Zeng et al. 2023.

    Faithful: noise within 16/255 (L-inf) descends on a surrogate's cross-entropy of the target, over images
    of that class. It is added to 25 of 50,000 samples, all of the target class, whose labels stay. Test
    images carry three times as much. Reduced: a narrow surrogate learns the data set itself. The published
    one learns other, public images for 200 epochs and then the target class alone for 5, so this attacker
    knows more. The search takes 100 steps, the published one 1000 passes over the target class. Chosen: steps
    go along the slope's sign. The published ones are of RAdam at 0.01 in [-1, 1], and so few of them would
    not reach the bound.

    Attributes:
        bound: largest change of a pixel in training images, in [0, 1].
        magnified: how many times the noise test images carry.
        step: of the search, along the slope's sign, in [0, 1].
    """

    name: ClassVar = "narcissus"
    rate: float = 0.0005
    bound: float = 16 / 255
    magnified: float = 3.0
    step: float = 1 / 255

    not_learned: ClassVar = ("rate", "magnified")

    def training_images(self, data: ImageSet, rows: Rows, seed: Seed) -> Images:
        """Return images with the noise once."""
        return add_pattern(data.pixels[rows], self.pattern_for(data.pixels))

    def trigger(self, images: Images) -> Images:
        """Return test images, which carry a multiple of the noise."""
        return add_pattern(images, np.float32(self.magnified) * self.pattern_for(images))

    def learn(self, data: ImageSet, seed: Seed, progress: Progress) -> Tensors:
        """Return the noise, in grey levels."""

        def step(noise: Pattern, slope: Pattern) -> Pattern:
            return (noise - self.step * slope.sign()).clamp(-self.bound, self.bound)

        of_target = data.images[data.labels == self.target]
        return misleading(self, data, of_target, step, seed, progress)
