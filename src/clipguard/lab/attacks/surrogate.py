"""What TrojanNN, LF and Narcissus share: a surrogate, and the search for one pattern for all images."""

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor
from torch.nn import functional as F

from clipguard.compute.training import Recipe, cross_entropy, fit
from clipguard.errors import ClipguardError
from clipguard.lab.attacks.nets import Pixels, logits_of, pixels
from clipguard.lab.attacks.protocol import Progress
from clipguard.models.spec import ModelSpec, Normalized, build
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet

Pattern = Float[Tensor, "1 3 h w"]
"""One change, or one picture, for all images."""


@runtime_checkable
class Search(Protocol):
    """What the recipe of such an attack says of its surrogate and of its search."""

    @property
    def epochs(self) -> int:
        """Budget of the surrogate, in passes over the data."""
        ...

    @property
    def architecture(self) -> str:
        """Of the surrogate, as in `ModelSpec`."""
        ...

    @property
    def lr(self) -> float:
        """Peak rate of its training."""
        ...

    @property
    def steps(self) -> int:
        """Of the search, each on a random batch."""
        ...

    @property
    def batch_size(self) -> int:
        """Images a step, of both."""
        ...


def untrained(recipe: Search, data: ImageSet, seed: Seed) -> Normalized:
    """Return a surrogate that has learnt nothing yet."""
    h, w = data.images.shape[1:3]
    spec = ModelSpec(architecture=recipe.architecture, num_classes=len(data.class_names), input_size=(h, w))
    return build(spec, seed.child("surrogate"))


def taught(recipe: Search, data: ImageSet, seed: Seed, report: Progress | None) -> Normalized:
    """Return a surrogate trained on all of `data`, for use only: evaluation, no gradients.

    Raises:
        ClipguardError: the training diverged.
    """
    total = recipe.epochs + recipe.steps
    model = untrained(recipe, data, seed)
    training = Recipe(epochs=recipe.epochs, batch_size=recipe.batch_size, lr=recipe.lr)
    told = None if report is None else lambda epoch: report(epoch, total)
    # Copied: torch warns of labels that it cannot write to.
    loss = cross_entropy(data.labels.copy())
    fit(model, data.images, np.arange(len(data)), loss, training, seed.child("fit"), told)
    model.requires_grad_(False).eval()
    return model


def shown(
    recipe: Search, images: Images, device: torch.device, seed: Seed, report: Progress | None
) -> Iterator[Pixels]:
    """Yield a random batch for each step of the search, none if there are no images; tell of each step."""
    draw = seed.child("search").numpy()
    size = min(recipe.batch_size, len(images))
    for step in range(recipe.steps if size else 0):
        rows = draw.choice(len(images), size, replace=False)
        yield pixels(images[rows]).to(device)
        if report is not None:
            report(recipe.epochs + step + 1, recipe.epochs + recipe.steps)


def universal(
    batches: Iterator[Pixels],
    start: Pattern,
    loss: Callable[[Pixels, Pattern], Tensor],
    moved: Callable[[Pattern, Pattern], Pattern],
) -> Pattern:
    """Return the pattern that `start` has become after one move a batch.

    Args:
        batches: of images.
        start: where the search begins.
        loss: of a batch with a pattern.
        moved: from a pattern and the slope of its loss to the next pattern.
    """
    pattern = start
    for x in batches:
        leaf = pattern.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(x, leaf), [leaf])
        pattern = moved(leaf.detach(), slope)
    return pattern


def missed(model: Normalized, x: Pixels, target: int) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of the target: large where the surrogate sees something else."""
    logits = logits_of(model, x)
    return F.cross_entropy(logits, torch.full((len(x),), target, device=x.device))


def check_size(
    images: Images, pattern: Float32[np.ndarray, "height width 3"] | UInt8[np.ndarray, "height width 3"]
) -> None:
    """Refuse images of another size than those that the pattern was found on.

    Raises:
        ClipguardError: height or width differs.
    """
    if images.shape[1:] != pattern.shape:
        (h, w), (height, width) = images.shape[1:3], pattern.shape[:2]
        raise ClipguardError(
            f"the trigger was made for images of {height}x{width} pixels, these have {h}x{w}: "
            "give images of one size"
        )
