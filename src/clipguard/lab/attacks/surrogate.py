"""What TrojanNN, LF and Narcissus share: a surrogate, and the search for one pattern for all images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from clipguard.compute.classifiers import ClassifierConfig, train_classifier
from clipguard.compute.device import here
from clipguard.compute.recipes import Recipe
from clipguard.errors import ClipguardError
from clipguard.lab.attacks.cache import Tensors
from clipguard.lab.attacks.learned import FITTING, LearnedAttack, required
from clipguard.lab.attacks.tensors import Pixels, pixels
from clipguard.models.spec import ModelSpec, Normalized, logits_of
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet, Progress

Pattern = Float[Tensor, "1 3 h w"]
"""One change, or one picture, for all images."""

Step = Callable[[Pattern, Pattern], Pattern]
"""From a pattern and the slope of its loss to the next pattern."""


@dataclass(frozen=True, kw_only=True)
class SurrogateAttack(LearnedAttack):
    """An attack that seeks one pattern for all images on a classifier that it trains, the surrogate.

    Attributes:
        epochs: budget of the surrogate, in passes over the data.
        architecture: of the surrogate, as in `ModelSpec`.
        lr: peak rate of its training.
        steps: of the search, each on a random batch.
        batch_size: images a step, of both.
        pattern: what the search found, in grey levels, for images of one size; learned.
    """

    epochs: int = 10
    architecture: str = "preactresnet18-8"
    lr: float = 0.1
    steps: int = 100
    batch_size: int = 128
    pattern: Shaped[np.ndarray, "h w 3"] | None = field(default=None, compare=False, repr=False)

    def pattern_for(self, images: Images) -> Shaped[np.ndarray, "height width 3"]:
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
        spec=ModelSpec.sized(architecture=attack.architecture, num_classes=k, input_size=size),
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
    attack: SurrogateAttack, images: Images, seed: Seed, progress: Progress
) -> Iterator[Pixels]:
    """Yield a random batch for each step of the search, none if there are no images."""
    draw = seed.child("search").generator()
    size = min(attack.batch_size, len(images))
    for step in range(attack.steps if size else 0):
        rows = draw.choice(len(images), size, replace=False)
        yield pixels(images[rows])
        progress(FITTING, attack.epochs + step + 1, attack.epochs + attack.steps)


def universal(
    batches: Iterator[Pixels], start: Pattern, loss: Callable[[Pixels, Pattern], Tensor], step: Step
) -> Pattern:
    """Return the pattern that `start` has become after one step a batch down the loss of both."""
    pattern = start
    for x in batches:
        leaf = pattern.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(x, leaf), [leaf])
        pattern = step(leaf.detach(), slope)
    return pattern


def misleading(
    attack: SurrogateAttack, data: ImageSet, images: Images, step: Step, seed: Seed, progress: Progress
) -> Tensors:
    """Return the pattern, in grey levels, that makes a surrogate of `data` take `images` for the target."""
    model = surrogate_of(attack, data, seed, progress)

    def loss(x: Pixels, pattern: Pattern) -> Tensor:
        return target_loss(model, (x + pattern).clamp(0, 1), attack.target)

    batches = search_batches(attack, images, seed, progress)
    pattern = universal(batches, torch.zeros(1, 3, *images.shape[1:3], device=here()), loss, step)
    return {"pattern": 255 * pattern[0].permute(1, 2, 0)}


def target_loss(model: Normalized, x: Pixels, target: int) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of the target: large where the surrogate predicts another class."""
    return F.cross_entropy(logits_of(model, x), torch.full((len(x),), target, device=x.device))
