"""Contrastive losses over a batch in which several pairs may be of one class.

Captions of one class say the same. A pair of that class is then no negative of another one: all pairs of the
class are positives with equal weight (Yang et al., CVPR 2022). Where every class occurs once, this is CLIP's
loss (InfoNCE).
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F


def directed_loss(
    queries: Float[Tensor, "b d"],
    keys: Float[Tensor, "b d"],
    scale: Float[Tensor, ""],
    classes: Int64[Tensor, "b"],
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of each query's keys; those of its own class share the target.

    Args:
        queries: of length one.
        keys: likewise.
        scale: factor on the cosines.
        classes: of the pairs.
    """
    same = (classes[:, None] == classes[None, :]).to(queries.dtype)
    return F.cross_entropy(scale * queries @ keys.T, same / same.sum(1, keepdim=True))


def cross_modal_loss(
    images: Float[Tensor, "b d"],
    texts: Float[Tensor, "b d"],
    scale: Float[Tensor, ""],
    classes: Int64[Tensor, "b"],
) -> Float[Tensor, ""]:
    """Return CLIP's loss: the mean of both directions."""
    return (directed_loss(images, texts, scale, classes) + directed_loss(texts, images, scale, classes)) / 2


def in_modal_loss(
    images: tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]],
    texts: tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]],
    scale: Float[Tensor, ""],
    classes: Int64[Tensor, "b"],
) -> Float[Tensor, ""]:
    """Return the mean of two losses: image against changed image, text against changed text.

    Each goes in one direction. An image's only positive is its own change.
    """
    own = torch.arange(len(classes), device=classes.device)
    return (directed_loss(*images, scale, own) + directed_loss(*texts, scale, classes)) / 2
