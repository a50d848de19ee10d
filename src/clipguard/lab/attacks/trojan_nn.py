"""TrojanNN: a patch that drives two units of a classifier, which a victim learns sooner than a plain one."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from clipguard.errors import ClipguardError
from clipguard.lab.attacks.cache import Tensors, key_of, learnt, restore, state_of
from clipguard.lab.attacks.nets import Pixels, logits_of, pixels, to_images
from clipguard.lab.attacks.protocol import Progress, choose, mapped_labels, planted
from clipguard.lab.attacks.rows import check_target
from clipguard.lab.attacks.surrogate import Pattern, check_size, shown, taught, universal, untrained
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.models.spec import Normalized
from clipguard.seeds import Seed
from clipguard.triggers.patterns import blend, corners, noise_pattern
from clipguard.types import Images, ImageSet


@dataclass(frozen=True, slots=True, kw_only=True)
class TrojanNN:
    """Dirty-label: a patch made to excite units of a net, relabelled to the target, after Liu et al. 2018.

    Faithful: the two inputs of the last layer with the largest sum of absolute weights are chosen, and the
    pixels under a mask descend on the mean squared distance of those units from 100; the patch is stamped on
    images, which get the target's label. As in BackdoorBench, the search is PGD (L-inf 0.3) and victims are
    trained from scratch on the poisoned set; the paper retrains the net itself, on images that it inverts.
    Reduced: a narrow surrogate trained here, fewer steps (BackdoorBench: 1000). Chosen: units whose
    largest weight is the target's come first, so that the patch speaks for the target before anybody has
    learnt it; the mask is a square in the bottom-right corner, a quarter of the shorter side wide (6 % of the
    area); the search begins at noise, and looks at the patch on training images instead of on an empty one.

    Attributes:
        rate: fraction of all samples that are poisoned, drawn from all classes (BackdoorBench: 0.1).
        target: their new label.
        epochs: the budget of the surrogate, in passes over the data.
        architecture: of the surrogate, as in `ModelSpec`; its last layer has to be linear.
        lr: peak rate of its training.
        units: how many are driven.
        wanted: what they are driven to.
        bound: largest change of the patch, in [0, 1].
        step: of PGD, in [0, 1].
        steps: of PGD, each on a random batch.
        batch_size: images a step, of the surrogate's training and of the search.
    """

    rate: float = 0.05
    target: int = 0
    epochs: int = 10
    architecture: str = "preactresnet18-8"
    lr: float = 0.1
    units: int = 2
    wanted: float = 100.0
    bound: float = 0.3
    step: float = 0.01
    steps: int = 200
    batch_size: int = 128

    def prepare(
        self, data: ImageSet, seed: Seed, cache: Path | None, report: Progress | None
    ) -> "ReadyTrojanNN":
        """Return the attack with its patch.

        Raises:
            ClipguardError: the target is no class of `data`, the surrogate has no linear layer, or its
                training diverged.
        """
        check_target(self.target, data)
        tensors = learnt(key_of(self, data, seed), cache, lambda: _searched(self, data, seed, report))
        surrogate = untrained(self, data, seed)
        restore(surrogate, "surrogate", tensors)
        return ReadyTrojanNN(
            rate=self.rate,
            target=self.target,
            recipe=self,
            surrogate=surrogate,
            patch=tensors["patch"].numpy(),
        )


def mask_of(height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """Return where the patch is: the bottom-right corner."""
    square: Bool[np.ndarray, "h w"] = corners(height, width)[3]
    return square


def head_of(model: Normalized) -> nn.Linear:
    """Return the last linear layer.

    Raises:
        ClipguardError: there is none.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise ClipguardError("the surrogate has no linear layer: choose another architecture")
    return layers[-1]


def strongest(head: nn.Linear, target: int, count: int) -> Int64[Tensor, "u"]:
    """Return the `count` inputs of `head` with the largest sums of absolute weights.

    Those whose largest weight is the target's come first, in this order, and then the others.
    """
    strength = head.weight.abs().sum(0)
    own = head.weight.argmax(0) == target
    return (strength + own * strength.sum()).topk(min(count, len(strength))).indices


def features_of(model: Normalized, x: Pixels) -> Float[Tensor, "b d"]:
    """Return what the model's last linear layer is given, differentiable in the images."""
    given: list[Tensor] = []
    hook = head_of(model).register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    try:
        logits_of(model, x)
    finally:
        hook.remove()
    return given[0]


def _searched(recipe: TrojanNN, data: ImageSet, seed: Seed, report: Progress | None) -> Tensors:
    """Return the patch, on a picture of the images' size, and the surrogate."""
    h, w = data.images.shape[1:3]
    model = taught(recipe, data, seed, report)
    device = model.mean.device
    units = strongest(head_of(model), recipe.target, recipe.units)
    mask = torch.from_numpy(mask_of(h, w)).to(device)
    start = pixels(noise_pattern(h, w, seed.child("patch"))[None]).to(device)

    def distance(x: Pixels, patch: Pattern) -> Tensor:
        driven = features_of(model, torch.where(mask, patch, x))[:, units]
        return ((recipe.wanted - driven) ** 2).mean()

    def moved(patch: Pattern, slope: Pattern) -> Pattern:
        further = patch - recipe.step * slope.sign()
        return torch.clamp(further, start - recipe.bound, start + recipe.bound).clamp(0, 1)

    batches = shown(recipe, data.images, device, seed, report)
    patch = to_images(universal(batches, start, distance, moved))[0]
    return {"patch": torch.from_numpy(patch), **state_of(surrogate=model)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyTrojanNN:
    """`TrojanNN` with its patch; the surrogate only tells what the patch does to it."""

    rate: float
    target: int
    recipe: TrojanNN
    surrogate: Normalized
    patch: UInt8[np.ndarray, "h w 3"]

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned set: rows are drawn from all classes."""
        rows = choose(np.arange(len(data)), self.rate, len(data), seed)
        return planted(self, data, "trojan-nn", rows, self.trigger(data.images[rows]))

    def trigger(self, images: Images) -> Images:
        """Return images whose corner is the patch.

        Raises:
            ClipguardError: they have another size than those that the attack was prepared for.
        """
        check_size(images, self.patch)
        opaque = mask_of(*images.shape[1:3])[None].astype(np.float32)
        return blend(images, self.patch, opaque)

    def target_labels(self, labels: Int64[np.ndarray, "n"], k: int) -> Int64[np.ndarray, "n"]:
        """Return the target for every image."""
        return mapped_labels(labels, k, self.target)
