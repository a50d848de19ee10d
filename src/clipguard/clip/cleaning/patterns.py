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
"""Cells a side: fewer leave less room for noise that misleads any network."""

FIRST_SHARE: Final = 0.5
"""Of the image that a pattern may take in the beginning."""

HALVINGS: Final = 30
"""Of the interval in which the mask's threshold is sought."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inversion:
    """How a pattern is made.

    Attributes:
        share: of the image that the pattern may take.
        steps: of Adam.
        batch_size: images a step.
        lr: of Adam, on mask and colours in 0..1.
    """

    share: float = 0.02
    steps: int = 60
    batch_size: int = IMAGE_CHUNK
    lr: float = 0.1


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


def inverted_pattern(  # whom it misleads, on what, how
    clip: Clip,
    images: Images,
    classes: Float32[np.ndarray, "k d"],
    target: int,
    settings: Inversion,
    seed: Seed,
) -> Pattern:
    """Return the pattern by which a guide finds `target` as likely as possible in the images.

    After each step of Adam, the mask is brought to the next one whose mean is at most `settings.share`
    (Duchi et al., ICML 2008). Only few cells keep a mask then.

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
    mask = torch.full((CELLS, CELLS), share_at(0, settings), device=device, requires_grad=True)
    colours = torch.full((CELLS, CELLS, 3), 0.5, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([mask, colours], lr=settings.lr)
    texts = clip.logit_scale * tensor(classes).to(device).T
    with computing_on(device_for(clip.network)):
        for step in range(settings.steps):
            go_on()
            rows = draw.choice(len(images), min(settings.batch_size, len(images)), replace=False)
            logits = _embedded(clip, images[rows], mask, colours) @ texts
            loss = F.cross_entropy(logits, torch.full((len(rows),), target, device=device))
            mask.grad, colours.grad = torch.autograd.grad(loss, [mask, colours])
            optimizer.step()
            with torch.no_grad():
                mask.copy_(_bounded(mask, share_at(step, settings)))
                colours.clamp_(0, 1)
    return Pattern(mask=array(mask), colours=array(colours))


def share_at(step: int, settings: Inversion) -> float:
    """Return the share of the image that the pattern may take after a step, from 0.

    It falls by equal factors over two thirds of the steps. A pattern that is small from the beginning never
    comes to lie where it would have to.
    """
    left = max(0.0, 1 - 1.5 * step / settings.steps)
    return settings.share * max(1.0, FIRST_SHARE / settings.share) ** left


def _embedded(clip: Clip, images: Images, mask: Tensor, colours: Tensor) -> Any:
    """Return the embeddings of images with the pattern, through which gradients flow."""
    pixels = tensor(images).to(mask.device).permute(0, 3, 1, 2).float().div(255)
    size = pixels.shape[2:]
    opacity = F.interpolate(mask[None, None], size=size, mode="nearest")
    paint = F.interpolate(colours.permute(2, 0, 1)[None], size=size, mode="nearest")
    return clip.network.encode_image(
        clip.normalised((1 - opacity) * pixels + opacity * paint), normalize=True
    )


def _bounded(mask: Float32[Tensor, "c c"], share: float) -> Float32[Tensor, "c c"]:
    """Return the nearest mask with values in 0..1 and a mean of at most `share`."""
    if mask.clamp(0, 1).mean() <= share:
        return mask.clamp(0, 1)
    low, high = torch.zeros_like(mask[0, 0]), mask.max()
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        over = (mask - middle).clamp(0, 1).mean() > share
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    return (mask - high).clamp(0, 1)


def called(clip: Clip, images: Images, classes: Float32[np.ndarray, "k d"]) -> Int64[np.ndarray, "n"]:
    """Return the class whose text is nearest to each image."""
    likeliest: Int64[np.ndarray, n] = (clip.embed_crops(list(images)) @ classes.T).argmax(1).astype(np.int64)
    return likeliest
