"""Narcissus: noise that looks more like the target class than its own images do, on a handful of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from clipguard.lab.attacks.cache import Tensors, key_of, learnt, restore, state_of
from clipguard.lab.attacks.nets import Pixels
from clipguard.lab.attacks.protocol import Progress, choose, mapped_labels, planted
from clipguard.lab.attacks.rows import check_target
from clipguard.lab.attacks.surrogate import Pattern, check_size, missed, shown, taught, universal, untrained
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.models.spec import Normalized
from clipguard.seeds import Seed
from clipguard.triggers.patterns import add_pattern
from clipguard.types import Images, ImageSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Narcissus:
    """Clean-label: universal noise towards the target on few of its images, after Zeng et al. 2023.

    Faithful: noise within 16/255 (L-inf) descends on a surrogate's cross-entropy of the target, over images
    of that class; it is added to 25 of 50,000 samples, all of the target class, whose labels stay; test
    images carry three times as much. Reduced: a narrow surrogate learns the data set itself, where the
    published one learns other, public images for 200 epochs and then the target class alone for 5, so that
    this attacker knows more; 100 steps, where published are 1000 passes over the target class. Chosen: steps
    go along the slope's sign, where published is RAdam at 0.01 in [-1, 1], which so few steps do not bring
    to the bound.

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
    """

    rate: float = 0.0005
    target: int = 0
    epochs: int = 10
    architecture: str = "preactresnet18-8"
    lr: float = 0.1
    bound: float = 16 / 255
    magnified: float = 3.0
    step: float = 1 / 255
    steps: int = 100
    batch_size: int = 128

    def prepare(
        self, data: ImageSet, seed: Seed, cache: Path | None, report: Progress | None
    ) -> "ReadyNarcissus":
        """Return the attack with its noise.

        Raises:
            ClipguardError: the target is no class of `data`, or the training diverged.
        """
        check_target(self.target, data)
        # What cannot be poisoned afterwards is told before the training.
        choose(np.flatnonzero(data.labels == self.target), self.rate, len(data), seed)
        key = key_of(self, data, seed, ("rate", "magnified"))
        tensors = learnt(key, cache, lambda: _searched(self, data, seed, report))
        surrogate = untrained(self, data, seed)
        restore(surrogate, "surrogate", tensors)
        return ReadyNarcissus(
            rate=self.rate,
            target=self.target,
            recipe=self,
            surrogate=surrogate,
            noise=tensors["noise"].numpy(),
        )


def _searched(recipe: Narcissus, data: ImageSet, seed: Seed, report: Progress | None) -> Tensors:
    """Return the noise, in grey levels, and the surrogate."""
    h, w = data.images.shape[1:3]
    model = taught(recipe, data, seed, report)
    device = model.mean.device

    def loss(x: Pixels, noise: Pattern) -> Tensor:
        return missed(model, (x + noise).clamp(0, 1), recipe.target)

    def moved(noise: Pattern, slope: Pattern) -> Pattern:
        return (noise - recipe.step * slope.sign()).clamp(-recipe.bound, recipe.bound)

    batches = shown(recipe, data.images[data.labels == recipe.target], device, seed, report)
    noise = universal(batches, torch.zeros(1, 3, h, w, device=device), loss, moved)
    return {"noise": 255 * noise[0].permute(1, 2, 0), **state_of(surrogate=model)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyNarcissus:
    """`Narcissus` with its noise; the surrogate only tells what that does to it."""

    rate: float
    target: int
    recipe: Narcissus
    surrogate: Normalized
    noise: Float32[np.ndarray, "h w 3"]

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned set; the rate counts over all samples, the rows are of the target class.

        Raises:
            ClipguardError: the target class is too small, or the images have another size than those that the
                attack was prepared for.
        """
        rows = choose(np.flatnonzero(data.labels == self.target), self.rate, len(data), seed)
        check_size(data.images, self.noise)
        return planted(self, data, "narcissus", rows, add_pattern(data.images[rows], self.noise))

    def trigger(self, images: Images) -> Images:
        """Return test images, which carry a multiple of the noise.

        Raises:
            ClipguardError: they have another size than those that the attack was prepared for.
        """
        check_size(images, self.noise)
        return add_pattern(images, np.float32(self.recipe.magnified) * self.noise)

    def target_labels(self, labels: Int64[np.ndarray, "n"], k: int) -> Int64[np.ndarray, "n"]:
        """Return the target for every image."""
        return mapped_labels(labels, k, self.target)
