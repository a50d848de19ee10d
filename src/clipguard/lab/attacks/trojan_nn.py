"""TrojanNN: a patch that drives two units of a classifier, which a victim learns sooner than a plain one."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from clipguard.compute.device import here
from clipguard.compute.inference import planes
from clipguard.errors import ClipguardError
from clipguard.lab.attacks.cache import Tensors
from clipguard.lab.attacks.surrogate import (
    Pattern,
    SurrogateAttack,
    search_batches,
    surrogate_of,
    universal,
)
from clipguard.lab.attacks.tensors import Pixels, pixels, to_images
from clipguard.models.features import Head, head_of, inputs_of
from clipguard.models.spec import Normalized, logits_of
from clipguard.seeds import Seed
from clipguard.triggers.patterns import blend, corners, noise_pattern
from clipguard.types import Images, ImageSet, Progress


@dataclass(frozen=True, kw_only=True)
class TrojanNN(SurrogateAttack):
    """Dirty-label: a patch made to excite units of a net, labelled with the target, after Liu et al. 2018.

    Faithful: the two inputs of the last layer with the largest sum of absolute weights are chosen. The pixels
    under a mask descend on the mean squared distance of those units from 100. The patch is pasted on images,
    which get the target's label. As in BackdoorBench, the search is PGD (L-inf 0.3) and victims are trained
    from scratch on the poisoned set; the paper retrains the net itself, on images that it inverts. Reduced: a
    narrow surrogate trained here, and fewer steps (BackdoorBench: 1000). Chosen: units whose largest weight
    is the target's come first, so that the patch leads to the target from the beginning. The mask is a square
    in the bottom-right corner, a quarter of the shorter side wide (6 % of the area). The search begins at
    noise, with the patch on training images instead of on an empty one. The surrogate's last layer must be
    linear. BackdoorBench poisons 0.1 of all samples.

    Attributes:
        units: how many are driven.
        activation: what they are driven to.
        bound: largest change of the patch, in [0, 1].
        step: of PGD, in [0, 1].
    """

    name: ClassVar = "trojan-nn"
    units: int = 2
    activation: float = 100.0
    bound: float = 0.3
    step: float = 0.01
    steps: int = 200

    def trigger(self, images: Images) -> Images:
        """Return images whose corner is the patch."""
        opaque = mask_of(*images.shape[1:3])[None].astype(np.float32)
        return blend(images, self.pattern_for(images), opaque)

    def learn(self, data: ImageSet, seed: Seed, progress: Progress) -> Tensors:
        """Return the patch, on a picture of the images' size.

        Raises:
            ClipguardError: the surrogate does not end in a linear layer.
        """
        h, w = data.images.shape[1:3]
        model = surrogate_of(self, data, seed, progress)
        head = head_of(model, planes(data.images[:1]))
        if head is None:
            net = self.architecture
            raise ClipguardError(f"{net} does not end in a linear layer: choose another architecture")
        units = strongest(head, self.target, self.units)
        mask = torch.from_numpy(mask_of(h, w)).to(here())
        start = pixels(noise_pattern(h, w, seed.child("patch"))[None])

        def distance(x: Pixels, patch: Pattern) -> Tensor:
            driven = features_of(model, head, torch.where(mask, patch, x))[:, units]
            return ((self.activation - driven) ** 2).mean()

        def step(patch: Pattern, slope: Pattern) -> Pattern:
            further = patch - self.step * slope.sign()
            return torch.clamp(further, start - self.bound, start + self.bound).clamp(0, 1)

        batches = search_batches(self, data.pixels, seed, progress)
        return {"pattern": torch.from_numpy(to_images(universal(batches, start, distance, step))[0])}


def mask_of(height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """Return where the patch is: the bottom-right corner."""
    square: Bool[np.ndarray, "h w"] = corners(height, width)[3]
    return square


def strongest(head: Head, target: int, count: int) -> Int64[Tensor, "u"]:
    """Return the `count` inputs of `head` with the largest sums of absolute weights.

    Those whose largest weight is the target's come first, in this order, and then the others.
    """
    strength = head.weight.flatten(1).abs().sum(0)
    own = head.weight.flatten(1).argmax(0) == target
    return (strength + own * strength.sum()).topk(min(count, len(strength))).indices


def features_of(model: Normalized, head: Head, x: Pixels) -> Float[Tensor, "b d"]:
    """Return what the model's head is given, differentiable in the images."""
    with inputs_of(head) as inputs:
        logits_of(model, x)
    return inputs[0]
