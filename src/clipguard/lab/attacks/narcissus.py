"""Narcissus: noise that looks more like the target class than its own images do, on a handful of them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from clipguard.lab.attacks.protocol import check_target
from clipguard.lab.attacks.row_choice import choose_of_class
from clipguard.lab.attacks.surrogate import (
    Pattern,
    SurrogateAttack,
    search_batches,
    surrogate_of,
    target_loss,
    universal,
)
from clipguard.lab.attacks.targeted import apply_poison
from clipguard.lab.attacks.tensors import Pixels
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.seeds import Seed
from clipguard.triggers.patterns import add_pattern
from clipguard.types import Images, ImageSet, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Narcissus(SurrogateAttack):
    """Clean-label: universal noise towards the target on few of its images, after Zeng et al. 2023.

    Faithful: noise within 16/255 (L-inf) descends on a surrogate's cross-entropy of the target, over images
    of that class. It is added to 25 of 50,000 samples, all of the target class, whose labels stay. Test
    images carry three times as much. Reduced: a narrow surrogate learns the data set itself. The published
    one learns other, public images for 200 epochs and then the target class alone for 5, so this attacker
    knows more. The search takes 100 steps, the published one 1000 passes over the target class. Chosen: steps
    go along the slope's sign. The published ones are of RAdam at 0.01 in [-1, 1], and so few of them would
    not reach the bound.

    Attributes:
        rate: fraction of all samples that are poisoned; they lie in the target class.
        target: class that the backdoor leads to.
        epochs: the budget of the surrogate, in passes over the data.
        architecture: of the surrogate, as in `ModelSpec`.
        lr: peak rate of its training.
        bound: largest change of a pixel in training images, in [0, 1].
        magnified: how many times the noise test images carry.
        step: of the search, along the slope's sign, in [0, 1].
        steps: of the search, each on a random batch.
        batch_size: images a step, of the surrogate's training and of the search.
        pattern: the noise, in grey levels; learned.
    """

    name: ClassVar = "narcissus"
    rate: float = 0.0005
    epochs: int = 10
    architecture: str = "preactresnet18-8"
    lr: float = 0.1
    bound: float = 16 / 255
    magnified: float = 3.0
    step: float = 1 / 255
    steps: int = 100
    batch_size: int = 128
    pattern: Float32[np.ndarray, "h w 3"] | None = field(default=None, compare=False, repr=False)

    _only_poisoning: ClassVar = ("rate", "magnified")

    def fit(self, data: ImageSet, seed: Seed, cache: Path | None, progress: Progress) -> "SurrogateAttack":
        """Return the attack with its noise.

        Raises:
            ClipguardError: the target is no class of `data` or a too small one, or the training diverged.
        """
        check_target(self.target, data)
        choose_of_class(data, self.target, self.rate, seed)
        return SurrogateAttack.fit(self, data, seed, cache, progress)

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned set; the rate counts over all samples, the rows are of the target class.

        Raises:
            ClipguardError: the target class is too small, the attack is not fitted, or was fitted to images
                of another size.
        """
        rows, noise = choose_of_class(data, self.target, self.rate, seed), self.pattern_for(data.images)
        return apply_poison(self, data, rows, add_pattern(data.images[rows], noise))

    def trigger(self, images: Images) -> Images:
        """Return test images, which carry a multiple of the noise.

        Raises:
            ClipguardError: the attack is not fitted, or was fitted to images of another size.
        """
        return add_pattern(images, np.float32(self.magnified) * self.pattern_for(images))

    def search(self, data: ImageSet, seed: Seed, progress: Progress) -> Tensor:
        """Return the noise, in grey levels.

        Raises:
            ClipguardError: the training of the surrogate diverged.
        """
        h, w = data.images.shape[1:3]
        model = surrogate_of(self, data, seed, progress)
        device = model.mean.device

        def loss(x: Pixels, noise: Pattern) -> Tensor:
            return target_loss(model, (x + noise).clamp(0, 1), self.target)

        def step(noise: Pattern, slope: Pattern) -> Pattern:
            return (noise - self.step * slope.sign()).clamp(-self.bound, self.bound)

        of_target = data.images[data.labels == self.target]
        batches = search_batches(self, of_target, device, seed, progress)
        noise = universal(batches, torch.zeros(1, 3, h, w, device=device), loss, step)
        return 255 * noise[0].permute(1, 2, 0)
