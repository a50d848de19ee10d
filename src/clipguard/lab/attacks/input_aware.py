"""Input-aware: each image gets a pattern and a mask of its own, which on any other image mean nothing."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from clipguard.compute.device import here
from clipguard.compute.recipes import Recipe
from clipguard.compute.training import augment
from clipguard.errors import ClipguardError
from clipguard.lab.attacks.learned import FITTING, NetAttack, required
from clipguard.lab.attacks.protocol import Rows
from clipguard.lab.attacks.row_choice import other_rows
from clipguard.lab.attacks.targeted import CoverAttack, MappedAttack
from clipguard.lab.attacks.tensors import Pixels, batches, descend, pixels, transformed
from clipguard.lab.attacks.unet import UNet
from clipguard.models.spec import ModelSpec, Normalized, build, logits_of
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet, Progress

Mask = Float[Tensor, "b 1 h w"]

_PIXEL_STD = 0.25
_SMALL = 1e-7
_OUTPUTS = {"generator": 3, "masker": 1}
_AUGMENTATION = Recipe(epochs=1, lr=0.0)


@dataclass(frozen=True, kw_only=True)
class InputAware(NetAttack, CoverAttack, MappedAttack):
    """A trigger made for each image, labelled with the target, with cover, after Nguyen & Tran 2020.

    Faithful: first a net M learns masks that are sparse and differ from image to image. Then a net G learns
    patterns together with a classifier. For x + (G(x) - x) M(x), the classifier is to predict the target
    label; for x with another image's pattern and mask, its own class. Masks and patterns are pushed to be as
    diverse as the images are. The poisoned set holds triggered images and, as cover, images with another's
    trigger and their own label. Reduced: fewer epochs (published: 25 for M, 600 for G on five times the
    images), a small U-Net in place of the autoencoder, a narrower classifier, and a larger share of triggered
    images (published: 0.1 each).

    Attributes:
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
        generator: G; learned.
        masker: M; learned.
    """

    name: ClassVar = "input-aware"
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
    generator: UNet | None = field(default=None, compare=False, repr=False)
    masker: UNet | None = field(default=None, compare=False, repr=False)

    not_learned: ClassVar = ("rate", "cover_ratio")

    def nets(self, seed: Seed) -> dict[str, nn.Module]:
        """Return G and M before their training."""
        return {name: self.untrained(outputs, seed.child(name)) for name, outputs in _OUTPUTS.items()}

    def untrained(self, outputs: int, seed: Seed) -> UNet:
        """Return an untrained G (3 outputs) or M (1)."""
        with seed.torch_global():
            return UNet(3, outputs, self.width)

    def train(self, data: ImageSet, seed: Seed, progress: Progress) -> None:
        """Train first M, then G together with a classifier, which is not kept."""
        if len(data) < 2:
            raise ClipguardError("input-aware triggers need at least two images: give more")
        masker = required(self.masker)
        _train_masker(self, masker, data, seed.child("masks"), progress)
        masker.requires_grad_(False).eval()
        _train_generator(self, data, seed, progress)

    def trigger(self, images: Images) -> Images:
        """Return images with their own pattern where their own mask says."""
        return self.crossed(images, images)

    def cover_images(self, data: ImageSet, rows: Rows, seed: Seed) -> Images:
        """Return images with another image's pattern and mask."""
        return self.crossed(data.images[rows], data.images[other_rows(rows, len(data), seed)])

    def crossed(self, images: Images, others: Images) -> Images:
        """Return images with the pattern and the mask of others."""
        generator, masker = required(self.generator), required(self.masker)
        return transformed(
            lambda x, y: put_on(x, pattern_of(generator, y), mask_of(masker, y)), images, others
        )


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


def _train_generator(attack: InputAware, data: ImageSet, seed: Seed, progress: Progress) -> None:
    """Train G in place, on an own classifier, while M is what it is."""
    generator, masker = required(attack.generator), required(attack.masker)
    size, k = data.images.shape[1:3], len(data.class_names)
    spec = ModelSpec.sized(architecture=attack.architecture, num_classes=k, input_size=size)
    classifier = build(spec, seed.child("classifier")).to(here()).train()
    optimizer = torch.optim.Adam(generator.parameters(), lr=attack.lr, betas=(0.5, 0.9))
    classifier_optimizer = torch.optim.SGD(
        classifier.parameters(), lr=attack.classifier_lr, momentum=0.9, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.LinearLR(classifier_optimizer, 1.0, 0.01, attack.epochs)
    target_mapping = torch.tensor(attack.target_labels(np.arange(k), k), device=here())
    for epoch in range(attack.epochs):
        stream = seed.child("patterns", epoch)
        augmentation = stream.child("augment").torch()
        for rows in batches(len(data), attack.batch_size, stream):
            batch = torch.from_numpy(np.array(data.images[rows]))
            x = pixels(augment(batch, _AUGMENTATION, augmentation).numpy())
            labels = torch.from_numpy(data.labels[rows]).to(here())
            loss = _joint_loss(attack, (generator, masker, classifier), x, labels, target_mapping)
            descend(loss, optimizer, classifier_optimizer)
        schedule.step()
        progress(FITTING, attack.mask_epochs + epoch + 1, attack.mask_epochs + attack.epochs)


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
            x = pixels(data.images[rows])
            other = x.roll(1, 0)
            masks = mask_of(masker, x)
            dense = F.relu(masks - attack.density).mean()
            alike = sameness(x, other, masks, masks.roll(1, 0))
            loss = attack.mask_weight * dense + attack.diversity_weight * alike
            descend(loss, optimizer)
        progress(FITTING, epoch + 1, attack.mask_epochs + attack.epochs)
