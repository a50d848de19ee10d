"""GCB: only labels change; a generator learns a natural feature that it can write and a net can read."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from clipguard.lab.attacks.cache import Tensors, cached, key_of, restore, state_of
from clipguard.lab.attacks.protocol import FITTING, check_target, required
from clipguard.lab.attacks.row_choice import highest
from clipguard.lab.attacks.targeted import TargetedAttack, apply_poison
from clipguard.lab.attacks.tensors import Pixels, batches, chunked, descend, device_of, pixels, transformed
from clipguard.lab.attacks.unet import UNet
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.models.nets import ShallowNet
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet, Progress

Code = Float[Tensor, "b"]


class Generator(nn.Module):
    """Image and code (0 or 1) to image: the change is smooth and bounded by `strength`, in [0, 1]."""

    def __init__(self, width: int, strength: float) -> None:
        super().__init__()
        self.unet = UNet(4, 3, width)
        # The game begins with images that are left as they are, so that the critic is never far behind.
        for weights in self.unet.leave.parameters():
            nn.init.zeros_(weights)
        self.strength = strength

    def forward(self, x: Pixels, code: Code) -> Pixels:
        """Return G(x, c)."""
        plane = (2 * code - 1)[:, None, None, None].expand(-1, 1, *x.shape[2:])
        change = F.avg_pool2d(torch.tanh(self.unet(torch.cat((4 * x - 2, plane), 1))), 4, ceil_mode=True)
        smooth = F.interpolate(change, list(x.shape[2:]), mode="bilinear")
        return (x + self.strength * smooth).clamp(0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class GCB(TargetedAttack):
    """Clean-image: labels of images that already show the trigger change, after the GCB paper (AAAI 2026).

    Faithful: a conditional InfoGAN is trained on the clean data. A U-Net G writes a Bernoulli code c into an
    image, D separates its images from real ones given the class, and Q reads the code back (L_GAN + l
    L_info). The images of other classes that Q scores highest get the target's label. Test images become G(x,
    1). Chosen, since they are unpublished: all nets and their sizes, l, the hinge loss and the rates. G makes
    a smooth, bounded change, and Q learns from blurred and noisy images. A small net would else agree with G
    on a faint watermark, which no natural image shows and no victim learns. G is not given the class, since a
    test image comes without its label.

    Attributes:
        rate: fraction of all samples whose label is changed (published: 0.01).
        target: their new label.
        epochs: the budget, in passes over the data.
        info_weight: l, the weight of the code's cross-entropy.
        strength: largest change of a pixel, in [0, 1].
        noise: standard deviation of the noise on what Q learns from, in [0, 1].
        lr: of Adam, for all three.
        batch_size: images a step.
        width: channels of the first layers.
        generator: G; learned.
        reader: Q; learned.
    """

    name: ClassVar = "gcb"
    rate: float = 0.01
    epochs: int = 12
    info_weight: float = 1.0
    strength: float = 0.25
    noise: float = 0.1
    lr: float = 5e-4
    batch_size: int = 64
    width: int = 16
    generator: Generator | None = field(default=None, compare=False, repr=False)
    reader: ShallowNet | None = field(default=None, compare=False, repr=False)

    def fit(self, data: ImageSet, seed: Seed, cache: Path | None, progress: Progress) -> "GCB":
        """Return the attack with its generator and its reader Q.

        Raises:
            ClipguardError: the target is no class of `data`, or the training diverged.
        """
        check_target(self.target, data)
        key = key_of(self, data, seed, ("rate", "target"))
        tensors = cached(key, cache, lambda: _train(self, data, seed, progress))
        generator, reader = untrained_generator(self, seed), _net(self, 1, seed.child("reader"))
        restore(generator, "generator", tensors)
        restore(reader, "reader", tensors)
        return replace(self, generator=generator, reader=reader)

    def scores(self, images: Images) -> Float[np.ndarray, "n"]:
        """Return Q's logit of code 1 for every image.

        Raises:
            ClipguardError: the attack is not fitted.
        """
        reader = required(self.reader)
        device = device_of(reader)
        parts = (images[part] for part in chunked(images))
        with torch.no_grad():
            logits = [reader(_view(coarse(pixels(part).to(device))))[:, 0].cpu().numpy() for part in parts]
        return np.concatenate(logits)

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the data with the labels of the images that show the code most; the seed is not used.

        Raises:
            ClipguardError: too few samples are of other classes than the target, or the attack is not fitted.
        """
        scores = np.where(data.labels == self.target, -np.inf, self.scores(data.images))
        rows = highest(scores, self.rate)
        return apply_poison(self, data, rows, data.images[rows])

    def trigger(self, images: Images) -> Images:
        """Return G(x, 1).

        Raises:
            ClipguardError: the attack is not fitted.
        """
        generator = required(self.generator)
        device = device_of(generator)
        return transformed(images, lambda x: generator(x, torch.ones(len(x), device=device)), device)


def untrained_generator(attack: GCB, seed: Seed) -> Generator:
    """Return G before its training."""
    with seed.child("generator").torch_global():
        return Generator(attack.width, attack.strength)


def _net(attack: GCB, outputs: int, seed: Seed) -> ShallowNet:
    """Return an untrained D (one output a class) or Q (one)."""
    with seed.torch_global():
        return ShallowNet(outputs, attack.width)


def _view(x: Pixels) -> Pixels:
    return (4 * x - 2).contiguous(memory_format=torch.channels_last)


def coarse(x: Pixels) -> Float[Tensor, "b 3 y x"]:
    """Return images averaged over 4x4 pixels, which is what Q reads."""
    return F.avg_pool2d(x, 4, ceil_mode=True)


def critic_loss(real: Float[Tensor, "b"], made: Float[Tensor, "b"]) -> Float[Tensor, ""]:
    """Return the hinge loss of D (Lim & Ye 2017)."""
    return F.relu(1 - real).mean() + F.relu(1 + made).mean()


def _train(attack: GCB, data: ImageSet, seed: Seed, progress: Progress) -> Tensors:
    """Return the state of G and Q after alternating steps of D and of G with Q."""
    generator, reader = (
        untrained_generator(attack, seed).train(),
        _net(attack, 1, seed.child("reader")).train(),
    )
    critic = _net(attack, len(data.class_names), seed.child("critic")).train()
    optimizer = torch.optim.Adam(
        [*generator.parameters(), *reader.parameters()], lr=attack.lr, betas=(0.5, 0.999)
    )
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=attack.lr, betas=(0.5, 0.999))
    codes = seed.child("codes").torch()
    for epoch in range(attack.epochs):
        for rows in batches(len(data), attack.batch_size, seed.child("order", epoch)):
            x = pixels(data.images[rows]).to(device_of(generator))
            labels = torch.from_numpy(data.labels[rows]).to(x.device)[:, None]
            code = torch.randint(0, 2, (len(rows),), generator=codes).float().to(x.device)
            made = generator(x, code)
            outputs = critic(_view(torch.cat((x, made.detach())))).gather(1, torch.cat((labels, labels)))[
                :, 0
            ]
            descend(critic_loss(outputs[: len(x)], outputs[len(x) :]), critic_optimizer)
            generator_loss = -critic(_view(made)).gather(1, labels).mean()
            blurred = coarse(made)
            noise = torch.randn(blurred.shape, generator=codes).to(x.device)
            logits = reader(_view(blurred + attack.noise * noise))[:, 0]
            code_loss = F.binary_cross_entropy_with_logits(logits, code)
            descend(generator_loss + attack.info_weight * code_loss, optimizer)
        progress(FITTING, epoch + 1, attack.epochs)
    return state_of(generator=generator, reader=reader)
