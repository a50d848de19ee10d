"""Input-aware: each image gets a pattern and a mask of its own, which on any other image mean nothing."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from clipguard.compute.training import Recipe, augment
from clipguard.errors import ClipguardError
from clipguard.lab.attacks.cache import Tensors, key_of, learnt, restore, state_of
from clipguard.lab.attacks.nets import (
    Pixels,
    UNet,
    batches,
    chunked,
    descend,
    device_of,
    logits_of,
    pixels,
    to_images,
    transformed,
)
from clipguard.lab.attacks.protocol import Mapping, Progress, choose_both, mapped_labels, planted
from clipguard.lab.attacks.rows import check_target
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.models.spec import ModelSpec, Normalized, build
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet

Mask = Float[Tensor, "b 1 h w"]

_PIXEL_STD = 0.25
_SMALL = 1e-7
_AUGMENTATION = Recipe(epochs=1, lr=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputAware:
    """A trigger made for each image, relabelled to the target, with cover, after Nguyen & Tran 2020.

    Faithful: first a net M learns masks that are sparse and differ from image to image, then a net G learns
    patterns together with a classifier that is to send x + (G(x) - x) M(x) where the attack target_labels, and x with
    another image's pattern and mask to its own class; both are pushed to be as diverse as the images are. The
    poisoned set holds triggered images and, as cover, images with another's trigger and their own label.
    Reduced: fewer epochs (published: 25 for M, 600 for G on five times the images), a small U-Net in place of
    the autoencoder, a narrower classifier, a larger share of triggered images (published: 0.1 each).

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
    """

    rate: float = 0.05
    target: int = 0
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

    def prepare(
        self, data: ImageSet, seed: Seed, cache: Path | None, report: Progress | None
    ) -> "ReadyInputAware":
        """Return the attack with its nets.

        Raises:
            ClipguardError: the target is no class of `data`, or the training diverged.
        """
        check_target(self.target, data)
        # Helpers from before there was a choice stay valid.
        usual = ("mapping",) if self.mapping == "all-to-one" else ()
        key = key_of(self, data, seed, ("rate", "cover_ratio", *usual))
        tensors = learnt(key, cache, lambda: _train(self, data, seed, report))
        generator, masker = self.net(3, seed.child("generator")), self.net(1, seed.child("masker"))
        restore(generator, "generator", tensors)
        restore(masker, "masker", tensors)
        classifier = self.classifier(data, seed)
        restore(classifier, "classifier", tensors)
        return ReadyInputAware(
            rate=self.rate,
            target=self.target,
            recipe=self,
            generator=generator,
            masker=masker,
            classifier=classifier,
        )

    def net(self, outputs: int, seed: Seed) -> UNet:
        """Return an untrained G (3 outputs) or M (1)."""
        with seed.torch_global():
            return UNet(3, outputs, self.width)

    def classifier(self, data: ImageSet, seed: Seed) -> Normalized:
        """Return an untrained classifier."""
        h, w = data.images.shape[1:3]
        k = len(data.class_names)
        spec = ModelSpec(architecture=self.architecture, num_classes=k, input_size=(h, w))
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


def _train(recipe: InputAware, data: ImageSet, seed: Seed, report: Progress | None) -> Tensors:
    """Return the state of G, M and the classifier."""
    if len(data) < 2:
        raise ClipguardError("input-aware triggers need at least two images: give more")
    masker = recipe.net(1, seed.child("masker")).train()
    _train_masker(recipe, masker, data, seed.child("masks"), report)
    masker.requires_grad_(False).eval()
    generator = recipe.net(3, seed.child("generator")).train()
    classifier = recipe.classifier(data, seed).train()
    makers = torch.optim.Adam(generator.parameters(), lr=recipe.lr, betas=(0.5, 0.9))
    judges = torch.optim.SGD(
        classifier.parameters(), lr=recipe.classifier_lr, momentum=0.9, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.LinearLR(judges, 1.0, 0.01, recipe.epochs)
    k = len(data.class_names)
    target_labels = torch.from_numpy(mapped_labels(np.arange(k), k, recipe.target, recipe.mapping)).to(
        device_of(generator)
    )
    for epoch in range(recipe.epochs):
        stream = seed.child("patterns", epoch)
        augmentation = stream.child("augment").torch()
        for rows in batches(len(data), recipe.batch_size, stream):
            picked = torch.from_numpy(np.array(data.images[rows]))
            x = pixels(augment(picked, _AUGMENTATION, augmentation).numpy()).to(device_of(generator))
            labels = torch.from_numpy(data.labels[rows]).to(x.device)
            loss = _joint_loss(recipe, (generator, masker, classifier), x, labels, target_labels)
            descend(loss, makers, judges)
        schedule.step()
        if report is not None:
            report(recipe.mask_epochs + epoch + 1, recipe.mask_epochs + recipe.epochs)
    return state_of(generator=generator, masker=masker, classifier=classifier)


def _joint_loss(
    recipe: InputAware,
    nets: tuple[UNet, UNet, Normalized],
    x: Pixels,
    labels: Int64[Tensor, "b"],
    target_labels: Int64[Tensor, "k"],
) -> Float[Tensor, ""]:
    """Return classification of own triggers, others' triggers and plain images, and the patterns' diversity.

    The batch is shuffled, so that the images after the first ones serve as the others.
    """
    generator, masker, classifier = nets
    count = max(1, round(recipe.share * len(x)))
    own, crossed = x[:count], x[count : 2 * count]
    others = x[-len(crossed) :].flip(0)
    patterns, masks = pattern_of(generator, own), mask_of(masker, own)
    foreign, foreign_masks = pattern_of(generator, others), mask_of(masker, others)
    shown = torch.cat((put_on(own, patterns, masks), put_on(crossed, foreign, foreign_masks), x[2 * count :]))
    wanted = torch.cat((target_labels[labels[:count]], labels[count:]))
    pairs = len(crossed)
    alike = sameness(own[:pairs], others, patterns[:pairs], foreign)
    return F.cross_entropy(logits_of(classifier, shown), wanted) + recipe.diversity_weight * alike


def _train_masker(
    recipe: InputAware, masker: UNet, data: ImageSet, seed: Seed, report: Progress | None
) -> None:
    """Train M in place: sparse masks that differ as much as the images do."""
    optimizer = torch.optim.Adam(masker.parameters(), lr=recipe.lr, betas=(0.5, 0.9))
    for epoch in range(recipe.mask_epochs):
        for rows in batches(len(data), recipe.batch_size, seed.child(epoch)):
            x = pixels(data.images[rows]).to(device_of(masker))
            other = x.roll(1, 0)
            masks = mask_of(masker, x)
            dense = F.relu(masks - recipe.density).mean()
            alike = sameness(x, other, masks, masks.roll(1, 0))
            loss = recipe.mask_weight * dense + recipe.diversity_weight * alike
            descend(loss, optimizer)
        if report is not None:
            report(epoch + 1, recipe.mask_epochs + recipe.epochs)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyInputAware:
    """`InputAware` with its nets; the classifier only tells how well G was taught."""

    rate: float
    target: int
    recipe: InputAware
    generator: UNet
    masker: UNet
    classifier: Normalized

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned set: rows are drawn from all classes, those of the cover from the rest.

        Raises:
            ClipguardError: poison and cover together are more than all samples.
        """
        rows, cover = choose_both(len(data), self.rate, self.recipe.cover_ratio, seed)
        # Another image each: the shift is never 0.
        shift = seed.child("others").numpy().integers(1, len(data), len(cover))
        cover_images = self.crossed(data.images[cover], data.images[(cover + shift) % len(data)])
        return planted(
            self, data, "input-aware", rows, self.trigger(data.images[rows]), (cover, cover_images)
        )

    def trigger(self, images: Images) -> Images:
        """Return images with their own pattern where their own mask says."""
        return transformed(images, self._own, device_of(self.generator))

    def _own(self, x: Pixels) -> Pixels:
        return put_on(x, pattern_of(self.generator, x), mask_of(self.masker, x))

    def crossed(self, images: Images, others: Images) -> Images:
        """Return images with the pattern and the mask of others."""
        out, device = np.array(images), device_of(self.generator)
        for part in chunked(images):
            x, y = (pixels(some[part]).to(device) for some in (images, others))
            with torch.no_grad():
                out[part] = to_images(put_on(x, pattern_of(self.generator, y), mask_of(self.masker, y)))
        return out

    def target_labels(self, labels: Int64[np.ndarray, "n"], k: int) -> Int64[np.ndarray, "n"]:
        """Return the target, or the next class."""
        return mapped_labels(labels, k, self.target, self.recipe.mapping)
