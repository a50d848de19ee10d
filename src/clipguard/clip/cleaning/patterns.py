"""Universal patterns: a small one for all images that makes a guide call them one class.

A pattern has a mask and colours on a grid of cells. A pixel becomes (1 - mask) pixel + mask colour, so that a
square of full mask is a patch and a faint mask everywhere is a blended picture. The mean of the mask is
bounded: it is the share of the image that the pattern may take.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor
from torch.nn import functional as F

from clipguard.clip.model import IMAGE_CHUNK, Clip
from clipguard.compute.device import array, computing_on, device_for, tensor
from clipguard.compute.lanes import go_on
from clipguard.seeds import Seed
from clipguard.types import Images

CELLS: Final = 32
"""Cells a side: the more there are, the more noise misleads any network."""

FIRST_SHARE: Final = 0.2
"""Of the image that a pattern may take in the beginning."""

HALVINGS: Final = 40
"""Of the interval in which the mask's factor is sought."""

MOMENTUM: Final = 0.8
"""Weight of earlier slopes of the mask."""

LARGEST_RATIO: Final = 12.0
"""Of two cells' masks, at most, as a logarithm: a lost cell may come back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inversion:
    """How a pattern is made.

    Attributes:
        share: of the image that the pattern may take.
        steps: of mask and colours.
        batch_size: images a step.
        lr: of Adam, on colours in 0..1.
        mask_lr: logarithm of the factor by which the cell with the steepest slope gains in a step.
    """

    share: float = 0.02
    steps: int = 60
    batch_size: int = IMAGE_CHUNK
    lr: float = 0.1
    mask_lr: float = 0.3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pattern:
    """A pattern on a grid of cells.

    Attributes:
        mask: how much of a pixel is replaced, 0..1.
        colours: by what, 0..1.
    """

    mask: Float32[np.ndarray, "c c"]
    colours: Float32[np.ndarray, "c c 3"]

    def apply(self, images: Images) -> Images:
        """Return the images with the pattern, enlarged to their size and rounded."""
        h, w = images.shape[1:3]
        rows, columns = (np.arange(size) * len(self.mask) // size for size in (h, w))
        mask = self.mask[rows][:, columns, None]
        colours = 255 * self.colours[rows][:, columns]
        mixed: np.ndarray = np.rint((1 - mask) * images.astype(np.float32) + mask * colours)
        return mixed.clip(0, 255).astype(np.uint8)


def inverted_pattern(
    clip: Clip,
    images: Images,
    classes: Float32[np.ndarray, "k d"],
    target: int,
    settings: Inversion,
    seed: Seed,
) -> Pattern:
    """Return the pattern by which a guide finds `target` as likely as possible in the images.

    The mask follows a mirror descent: cells gain and lose by factors, so that a few come to hold all of it.
    Steps that add, such as Adam's, move every cell alike, and which ones are kept is chance.

    Args:
        clip: the guide's model.
        images: of other classes, of the size that its preprocessing gives.
        classes: embeddings of the classes' texts.
        target: one of them.
        settings: see there.
        seed: of the order of the images.
    """
    device = device_for(clip.network).torch
    draw = seed.generator()
    weights, mean_slope = torch.zeros(2, CELLS, CELLS, device=device)
    colours = torch.full((CELLS, CELLS, 3), 0.5, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([colours], lr=settings.lr)
    texts = clip.logit_scale * tensor(classes).to(device).T
    with computing_on(device_for(clip.network)):
        for step in range(settings.steps):
            go_on()
            rows = draw.choice(len(images), min(settings.batch_size, len(images)), replace=False)
            mask = bounded_mask(weights, share_at(step, settings)).requires_grad_(True)
            logits = _embedded(clip, images[rows], mask, colours) @ texts
            loss = F.cross_entropy(logits, torch.full((len(rows),), target, device=device))
            slope, colours.grad = torch.autograd.grad(loss, [mask, colours])
            optimizer.step()
            with torch.no_grad():
                colours.clamp_(0, 1)
                mean_slope = MOMENTUM * mean_slope + (1 - MOMENTUM) * slope
                weights = weights - settings.mask_lr * mean_slope / mean_slope.abs().max().clamp(min=1e-12)
                weights = (weights - weights.max()).clamp(min=-LARGEST_RATIO)
    return Pattern(mask=array(bounded_mask(weights, settings.share)), colours=array(colours))


def share_at(step: int, settings: Inversion) -> float:
    """Return the share of the image that the pattern may take after a step, from 0.

    It falls by equal factors over two thirds of the steps. A pattern that is small from the beginning never
    comes to lie where it would have to.
    """
    left = max(0.0, 1 - 1.5 * step / settings.steps)
    enlarged: float = max(1.0, FIRST_SHARE / settings.share) ** left
    return settings.share * enlarged


def _embedded(clip: Clip, images: Images, mask: Tensor, colours: Tensor) -> Any:
    """Return the embeddings of images with the pattern, through which gradients flow."""
    pixels = tensor(images).to(mask.device).permute(0, 3, 1, 2).float().div(255)
    size = pixels.shape[2:]
    opacity = F.interpolate(mask[None, None], size=size, mode="nearest")
    paint = F.interpolate(colours.permute(2, 0, 1)[None], size=size, mode="nearest")
    return clip.network.encode_image(
        clip.normalised((1 - opacity) * pixels + opacity * paint), normalize=True
    )


def bounded_mask(weights: Float32[Tensor, "c c"], share: float) -> Float32[Tensor, "c c"]:
    """Return exp(weights) times the factor by which its mean is `share`, where values above 1 count as 1."""
    low, high = -weights.max() - LARGEST_RATIO, -weights.min()
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        over = (weights + middle).exp().clamp(max=1).mean() > share
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    return (weights + low).exp().clamp(max=1)


def called(clip: Clip, images: Images, classes: Float32[np.ndarray, "k d"]) -> Int64[np.ndarray, "n"]:
    """Return the class whose text is nearest to each image."""
    likeliest: Int64[np.ndarray, n] = (clip.embed_crops(list(images)) @ classes.T).argmax(1).astype(np.int64)
    return likeliest
