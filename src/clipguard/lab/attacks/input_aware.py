"""Input-aware: each image gets a pattern and a mask of its own, which on any other image mean nothing."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from clipguard.compute.training import Recipe, augment
from clipguard.errors import ClipguardError
from clipguard.lab.attacks.cache import Tensors, cached, key_of, restore, state_of
from clipguard.lab.attacks.protocol import FITTING, Mapping, check_target, mapped_labels, required
from clipguard.lab.attacks.row_choice import choose_both
from clipguard.lab.attacks.targeted import MappedAttack, apply_poison
from clipguard.lab.attacks.tensors import (
    Pixels,
    batches,
    chunked,
    descend,
    device_of,
    logits_of,
    pixels,
    to_images,
    transformed,
)
from clipguard.lab.attacks.unet import UNet
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.models.spec import ModelSpec, Normalized, build
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet, Progress

Mask = Float[Tensor, "b 1 h w"]

_PIXEL_STD = 0.25
_SMALL = 1e-7
_AUGMENTATION = Recipe(epochs=1, lr=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputAware(MappedAttack):
    """A trigger made for each image, labelled with the target, with cover, after Nguyen & Tran 2020.

    Faithful: first a net M learns masks that are sparse and differ from image to image. Then a net G learns
    patterns together with a classifier. For x + (G(x) - x) M(x), the classifier is to predict the target
    label; for x with another image's pattern and mask, its own class. Masks and patterns are pushed to be as
    diverse as the images are. The poisoned set holds triggered images and, as cover, images with another's
    trigger and their own label. Reduced: fewer epochs (published: 25 for M, 600 for G on five times the
    images), a small U-Net in place of the autoencoder, a narrower classifier, and a larger share of triggered
    images (published: 0.1 each).

    Attributes:
        rate: fraction of all samples that are poisoned, drawn from all classes.
        target: their new label, unless each class leads to the next.
        cover_ratio: cover samples for each poisoned one.
        mask_epochs: the budget of M, in passes over the data.
        epochs: the budget of G and the classifier, in passes over the data.
        architecture: of the classifier, as in `ModelSpec`.
        share: of a batch that gets its own trigger, and as many another's.
        density: mean mask above which masks are punished.
        mask_weight: of that punishment.
        diversity_weight: of the diversity of masks and patterns.
        classifier_lr: of SGD with momentum 0.9.
        lr: of Adam, for G and M.
        batch_size: images a step.
        width: channels of the first layers of G and M.
        mapping: to the target, or each class to the next one; both are published.
        generator: G; learned.
        masker: M; learned.
    """

    name: ClassVar = "input-aware"
    cover_ratio: float = 1.0
    mask_epochs: int = 4
    epochs: int = 15
    architecture: str = "preactresnet18-8"
    share: float = 0.2
    density: float = 0.032
    mask_weight: float = 100.0
    diversity_weight: float = 1.0
    classifier_lr: float = 0.05
    lr: float = 1e-3
    batch_size: int = 128
    width: int = 8
    mapping: Mapping = "all-to-one"
    generator: UNet | None = field(default=None, compare=False, repr=False)
    masker: UNet | None = field(default=None, compare=False, repr=False)

    def fit(self, data: ImageSet, seed: Seed, cache: Path | None, progress: Progress) -> "InputAware":
        """Return the attack with its nets.

        Raises:
            ClipguardError: the target is no class of `data`, or the training diverged.
        """
        check_target(self.target, data)
        key = key_of(self, data, seed, ("rate", "cover_ratio"))
        tensors = cached(key, cache, lambda: _train(self, data, seed, progress))
        generator, masker = (
            untrained_net(self, 3, seed.child("generator")),
            untrained_net(self, 1, seed.child("masker")),
        )
        restore(generator, "generator", tensors)
        restore(masker, "masker", tensors)
        return replace(self, generator=generator, masker=masker)

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned set: rows are drawn from all classes, those of the cover from the rest.

        Raises:
            ClipguardError: poison and cover together are more than all samples, or the attack is not fitted.
        """
        rows, cover = choose_both(len(data), self.rate, self.cover_ratio, seed)
        # Another image each: the shift is never 0.
        shift = seed.child("others").numpy().integers(1, len(data), len(cover))
        cover_images = self.crossed(data.images[cover], data.images[(cover + shift) % len(data)])
        images = self.trigger(data.images[rows])
        return apply_poison(self, data, rows, images, (cover, cover_images))

    def trigger(self, images: Images) -> Images:
        """Return images with their own pattern where their own mask says.

        Raises:
            ClipguardError: the attack is not fitted.
        """
        return transformed(images, lambda x: self._paste_of(x, x), device_of(required(self.generator)))

    def crossed(self, images: Images, others: Images) -> Images:
        """Return images with the pattern and the mask of others."""
        out, device = np.array(images), device_of(required(self.generator))
        for part in chunked(images):
            x, y = (pixels(some[part]).to(device) for some in (images, others))
            with torch.no_grad():
                out[part] = to_images(self._paste_of(x, y))
        return out

    def _paste_of(self, x: Pixels, y: Pixels) -> Pixels:
        """Return x with the pattern and the mask that are made of y."""
        return put_on(x, pattern_of(required(self.generator), y), mask_of(required(self.masker), y))


def untrained_net(attack: InputAware, outputs: int, seed: Seed) -> UNet:
    """Return an untrained G (3 outputs) or M (1)."""
    with seed.torch_global():
        return UNet(3, outputs, attack.width)


def _classifier(attack: InputAware, data: ImageSet, seed: Seed) -> Normalized:
    """Return an untrained classifier."""
    size, k = data.images.shape[1:3], len(data.class_names)
    spec = ModelSpec(architecture=attack.architecture, num_classes=k, input_size=size)
    return build(spec, seed.child("classifier"))


def pattern_of(generator: UNet, x: Pixels) -> Pixels:
    """Return G(x), in [0, 1]."""
    made: Tensor = generator((x - 0.5) / _PIXEL_STD)
    return (torch.tanh(made) + 1) / 2


def mask_of(masker: UNet, x: Pixels) -> Mask:
    """Return M(x) = (tanh(10 tanh(m)) + 1) / 2, which is tanh(20 s - 10) / 2 + 0.5 of s in [0, 1]."""
    made: Tensor = masker((x - 0.5) / _PIXEL_STD)
    return (torch.tanh(10 * torch.tanh(made)) + 1) / 2


def put_on(x: Pixels, pattern: Pixels, mask: Mask) -> Pixels:
    """Return x + (pattern - x) mask."""
    return x + (pattern - x) * mask


def sameness(
    one: Pixels, other: Pixels, made_of_one: Float[Tensor, "b c h w"], made_of_other: Float[Tensor, "b c h w"]
) -> Float[Tensor, ""]:
    """Return the mean of ||x - y|| / ||f(x) - f(y)||: large where different images get the same (eq. 4)."""
    apart = _distance((one - other) / _PIXEL_STD)
    return (apart / (_distance(made_of_one - made_of_other) + _SMALL)).mean()


def _distance(difference: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
    # The root's slope is infinite at 0, where two images, or what is made of them, are the same.
    return (difference**2).mean((1, 2, 3)).add(_SMALL).sqrt()


def _train(attack: InputAware, data: ImageSet, seed: Seed, progress: Progress) -> Tensors:
    """Return the state of G and M."""
    if len(data) < 2:
        raise ClipguardError("input-aware triggers need at least two images: give more")
    masker = untrained_net(attack, 1, seed.child("masker")).train()
    _train_masker(attack, masker, data, seed.child("masks"), progress)
    masker.requires_grad_(False).eval()
    generator = untrained_net(attack, 3, seed.child("generator")).train()
    classifier = _classifier(attack, data, seed).train()
    optimizer = torch.optim.Adam(generator.parameters(), lr=attack.lr, betas=(0.5, 0.9))
    classifier_optimizer = torch.optim.SGD(
        classifier.parameters(), lr=attack.classifier_lr, momentum=0.9, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.LinearLR(classifier_optimizer, 1.0, 0.01, attack.epochs)
    k = len(data.class_names)
    mapping = mapped_labels(np.arange(k), k, attack.target, attack.mapping)
    target_mapping = torch.from_numpy(mapping).to(device_of(generator))
    for epoch in range(attack.epochs):
        stream = seed.child("patterns", epoch)
        augmentation = stream.child("augment").torch()
        for rows in batches(len(data), attack.batch_size, stream):
            batch = torch.from_numpy(np.array(data.images[rows]))
            x = pixels(augment(batch, _AUGMENTATION, augmentation).numpy()).to(device_of(generator))
            labels = torch.from_numpy(data.labels[rows]).to(x.device)
            loss = _joint_loss(attack, (generator, masker, classifier), x, labels, target_mapping)
            descend(loss, optimizer, classifier_optimizer)
        schedule.step()
        progress(FITTING, attack.mask_epochs + epoch + 1, attack.mask_epochs + attack.epochs)
    return state_of(generator=generator, masker=masker)


def _joint_loss(
    attack: InputAware,
    nets: tuple[UNet, UNet, Normalized],
    x: Pixels,
    labels: Int64[Tensor, "b"],
    target_mapping: Int64[Tensor, "k"],
) -> Float[Tensor, ""]:
    """Return classification of own triggers, others' triggers and plain images, and the patterns' diversity.

    The batch is shuffled, so that the images after the first ones serve as the others.
    """
    generator, masker, classifier = nets
    count = max(1, round(attack.share * len(x)))
    own, crossed = x[:count], x[count : 2 * count]
    others = x[-len(crossed) :].flip(0)
    patterns, masks = pattern_of(generator, own), mask_of(masker, own)
    foreign, foreign_masks = pattern_of(generator, others), mask_of(masker, others)
    inputs = torch.cat(
        (put_on(own, patterns, masks), put_on(crossed, foreign, foreign_masks), x[2 * count :])
    )
    expected = torch.cat((target_mapping[labels[:count]], labels[count:]))
    pairs = len(crossed)
    alike = sameness(own[:pairs], others, patterns[:pairs], foreign)
    return F.cross_entropy(logits_of(classifier, inputs), expected) + attack.diversity_weight * alike


def _train_masker(attack: InputAware, masker: UNet, data: ImageSet, seed: Seed, progress: Progress) -> None:
    """Train M in place: sparse masks that differ as much as the images do."""
    optimizer = torch.optim.Adam(masker.parameters(), lr=attack.lr, betas=(0.5, 0.9))
    for epoch in range(attack.mask_epochs):
        for rows in batches(len(data), attack.batch_size, seed.child(epoch)):
            x = pixels(data.images[rows]).to(device_of(masker))
            other = x.roll(1, 0)
            masks = mask_of(masker, x)
            dense = F.relu(masks - attack.density).mean()
            alike = sameness(x, other, masks, masks.roll(1, 0))
            loss = attack.mask_weight * dense + attack.diversity_weight * alike
            descend(loss, optimizer)
        progress(FITTING, epoch + 1, attack.mask_epochs + attack.epochs)
