"""Fine-tuning of a CLIP on labelled images and captions of their classes, each beside a changed copy.

CleanCLIP and ABD differ in how an image is changed, and in nothing else.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from clipguard.clip.cleaning.captions import captions_by_class, changed_caption
from clipguard.clip.cleaning.losses import cross_modal_loss, in_modal_loss
from clipguard.clip.model import Clip
from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.device import computing_on, device_for, tensor
from clipguard.compute.lanes import go_on
from clipguard.compute.threads import intra_op, training_threads
from clipguard.errors import ClipguardError
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet, StepProgress

ChangedImages = Callable[[Images, Seed], Images]
"""(crops uint8 [b, h, w, 3], seed) -> the same images, changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuning:
    """How a guide is fine-tuned; published values of CleanCLIP (Bansal et al., ICCV 2023), but for two.

    CleanCLIP has a rate of 1e-5 over 15,600 steps, ten passes. Here are a few hundred steps: that rate
    changes next to nothing.

    Attributes:
        epochs: passes over the images.
        lr: highest rate of AdamW, reached after the warm-up; it falls as a cosine.
        batch_size: pairs a step.
        weight_decay: of matrices and kernels alone.
        warmup: steps, at most a fifth of all.
        cross_modal: weight of CLIP's loss.
        in_modal: weight of the losses of image against changed image, text against changed text.
    """

    epochs: int = 4
    lr: float = 3e-4
    batch_size: int = 64
    weight_decay: float = 0.1
    warmup: int = 50
    cross_modal: float = 1.0
    in_modal: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FineTuned:
    """A fine-tuned network and the mean loss of each epoch."""

    network: Any
    losses: tuple[float, ...]


def fine_tune(
    guide: ClipGuide,
    data: ImageSet,
    changed: ChangedImages,
    settings: FineTuning,
    seed: Seed,
    progress: StepProgress,
) -> FineTuned:
    """Return a copy of the guide's network that was fine-tuned on the images; the guide stays as it is.

    Layers stay in evaluation mode: statistics of BatchNorm belong to the images that the guide was made on.

    Args:
        guide: whose prompts make the captions.
        data: at least two images, of the size that the guide's preprocessing gives.
        changed: makes the changed copy of an image.
        settings: see there.
        seed: of order, prompts and changes.
        progress: called after each step.

    Raises:
        ClipguardError: the loss is not finite, or a weight after the last step.
    """
    clip = guide.clip
    network = copy.deepcopy(clip.network).eval().requires_grad_(True)
    batches = math.ceil(len(data) / settings.batch_size)
    total, losses = settings.epochs * batches, []
    optimizer = _optimizer(network, settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(settings, step, total))
    pairs = _Pairs(clip, network, data, captions_by_class(guide.prompts, data.class_names), changed)
    with computing_on(device_for(network)), intra_op(training_threads()):
        for epoch in range(settings.epochs):
            order = seed.child("order", epoch).generator().permutation(len(data))
            values = []
            for number, rows in enumerate(np.array_split(order, batches)):
                go_on()
                value = pairs.loss(rows, settings, seed.child("pairs", epoch, number))
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                optimizer.step()
                schedule.step()
                values.append(float(value.detach()))
                progress(epoch * batches + number + 1, total)
            losses.append(float(np.mean(values)))
            _check_finite(losses[-1], epoch)
        # Each loss is of the weights before its step.
        _check_finite_weights(network, settings.epochs)
        with torch.no_grad():
            last = pairs.loss(rows, settings, seed.child("pairs", "last"))
        _check_finite(float(last), settings.epochs - 1)
    return FineTuned(network=network.requires_grad_(False), losses=tuple(losses))


@dataclass(frozen=True, slots=True)
class _Pairs:
    """What the pairs of a batch are made of."""

    clip: Clip
    network: Any
    data: ImageSet
    captions: list[list[str]]
    changed: ChangedImages

    def loss(self, rows: Int64[np.ndarray, "b"], settings: FineTuning, seed: Seed) -> Float32[Tensor, ""]:
        """Return the loss of the images of `rows`."""
        draw, images, labels = seed.generator(), self.data.images[rows], self.data.labels[rows]
        texts = [self.captions[label][draw.integers(len(self.captions[label]))] for label in labels.tolist()]
        first, second = self._of_images(np.concatenate([images, self.changed(images, seed.child("images"))]))
        original, altered = self._of_texts(texts + [changed_caption(text, draw) for text in texts])
        scale = self.network.logit_scale.exp()
        classes = tensor(labels).to(first.device)
        return settings.cross_modal * cross_modal_loss(
            first, original, scale, classes
        ) + settings.in_modal * in_modal_loss((first, second), (original, altered), scale, classes)

    def _of_images(self, images: Images) -> tuple[Float32[Tensor, "b d"], Float32[Tensor, "b d"]]:
        first, second = self.network.encode_image(self.clip.pixels(list(images)), normalize=True).chunk(2)
        return first, second

    def _of_texts(self, texts: list[str]) -> tuple[Float32[Tensor, "b d"], Float32[Tensor, "b d"]]:
        # Few captions are different ones: each is embedded once.
        distinct = sorted(set(texts))
        tokens = self.clip.tokenizer(distinct).to(self.network.logit_scale.device)
        every = self.network.encode_text(tokens, normalize=True)[[distinct.index(text) for text in texts]]
        first, second = every.chunk(2)
        return first, second


def _optimizer(network: nn.Module, settings: FineTuning) -> torch.optim.AdamW:
    weights = list(network.parameters())
    decayed = [weight for weight in weights if weight.ndim > 1]
    others = [weight for weight in weights if weight.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.999))


def _rate(settings: FineTuning, step: int, total: int) -> float:
    """Return the share of the highest rate at a step, from 0."""
    warmup = min(settings.warmup, total // 5)
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2


def _check_finite(mean: float, epoch: int) -> None:
    if not math.isfinite(mean):
        raise ClipguardError(f"cleaning diverged in epoch {epoch + 1}: its loss is {mean}; lower the rate")


def _check_finite_weights(network: nn.Module, epochs: int) -> None:
    if not all(bool(weight.isfinite().all()) for weight in network.parameters()):
        raise ClipguardError(f"cleaning diverged in epoch {epochs}: a weight is not finite; lower the rate")
