"""What TrojanNN, LF and Narcissus share: a surrogate, and the search for one pattern for all images."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor
from torch.nn import functional as F

from clipguard.compute.classifiers import ClassifierConfig, train_classifier
from clipguard.compute.training import Recipe
from clipguard.errors import ClipguardError
from clipguard.lab.attacks.cache import cached, key_of
from clipguard.lab.attacks.protocol import FITTING, check_target, required
from clipguard.lab.attacks.targeted import TargetedAttack
from clipguard.lab.attacks.tensors import Pixels, logits_of, pixels
from clipguard.models.spec import ModelSpec, Normalized
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet, Progress

Pattern = Float[Tensor, "1 3 h w"]
"""One change, or one picture, for all images."""


class SurrogateAttack(TargetedAttack):
    """An attack that seeks one pattern for all images on a classifier that it trains, the surrogate.

    Its dataclass has these fields:

    Attributes:
        epochs: budget of the surrogate, in passes over the data.
        architecture: of the surrogate, as in `ModelSpec`.
        lr: peak rate of its training.
        steps: of the search, each on a random batch.
        batch_size: images a step, of both.
        pattern: what the search found, in grey levels, for images of one size; learned.
    """

    __slots__ = ()
    epochs: int
    architecture: str
    lr: float
    steps: int
    batch_size: int
    pattern: Float32[np.ndarray, "h w 3"] | UInt8[np.ndarray, "h w 3"] | None

    _only_poisoning: ClassVar[tuple[str, ...]] = ("rate",)
    """Settings on which the pattern does not depend."""

    @abstractmethod
    def search(self, data: ImageSet, seed: Seed, progress: Progress) -> Tensor:
        """Return the pattern for images of the size of `data`, [h, w, 3]."""

    def fit(self, data: ImageSet, seed: Seed, cache: Path | None, progress: Progress) -> "SurrogateAttack":
        """Return the attack with its pattern.

        Raises:
            ClipguardError: the target is no class of `data`, or the training diverged.
        """
        check_target(self.target, data)
        key = key_of(self, data, seed, self._only_poisoning)
        tensors = cached(key, cache, lambda: {"pattern": self.search(data, seed, progress)})
        own: Any = self
        fitted: SurrogateAttack = replace(own, pattern=tensors["pattern"].numpy())
        return fitted

    def pattern_for(
        self, images: Images
    ) -> Float32[np.ndarray, "height width 3"] | UInt8[np.ndarray, "height width 3"]:
        """Return the pattern.

        Raises:
            ClipguardError: the attack is not fitted, or was fitted to images of another size.
        """
        pattern = required(self.pattern)
        if images.shape[1:] != pattern.shape:
            (h, w), (height, width) = images.shape[1:3], pattern.shape[:2]
            raise ClipguardError(
                f"the trigger was made for images of {height}x{width} pixels, these have {h}x{w}: "
                "give images of one size"
            )
        return pattern


def surrogate_of(attack: SurrogateAttack, data: ImageSet, seed: Seed, progress: Progress) -> Normalized:
    """Return a surrogate trained on all of `data`, for use only: evaluation, no gradients.

    Raises:
        ClipguardError: the training diverged.
    """
    size, k = data.images.shape[1:3], len(data.class_names)
    config = ClassifierConfig(
        spec=ModelSpec(architecture=attack.architecture, num_classes=k, input_size=size),
        recipe=Recipe(epochs=attack.epochs, batch_size=attack.batch_size, lr=attack.lr),
        seed=seed,
    )
    model, _ = train_classifier(
        config,
        data,
        np.arange(len(data)),
        on_epoch=lambda epoch: progress(FITTING, epoch, attack.epochs + attack.steps),
        initial=seed.child("surrogate"),
    )
    return model.requires_grad_(False).eval()


def search_batches(
    attack: SurrogateAttack, images: Images, device: torch.device, seed: Seed, progress: Progress
) -> Iterator[Pixels]:
    """Yield a random batch for each step of the search, none if there are no images."""
    draw = seed.child("search").numpy()
    size = min(attack.batch_size, len(images))
    for step in range(attack.steps if size else 0):
        rows = draw.choice(len(images), size, replace=False)
        yield pixels(images[rows]).to(device)
        progress(FITTING, attack.epochs + step + 1, attack.epochs + attack.steps)


def universal(
    batches: Iterator[Pixels],
    start: Pattern,
    loss: Callable[[Pixels, Pattern], Tensor],
    step: Callable[[Pattern, Pattern], Pattern],
) -> Pattern:
    """Return the pattern that `start` has become after one step a batch.

    Args:
        batches: of images.
        start: where the search begins.
        loss: of a batch with a pattern.
        step: from a pattern and the slope of its loss to the next pattern.
    """
    pattern = start
    for x in batches:
        leaf = pattern.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(x, leaf), [leaf])
        pattern = step(leaf.detach(), slope)
    return pattern


def target_loss(model: Normalized, x: Pixels, target: int) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of the target: large where the surrogate predicts another class."""
    logits = logits_of(model, x)
    return F.cross_entropy(logits, torch.full((len(x),), target, device=x.device))
