"""GCB: only labels change; a generator learns a natural feature that it can write and a net can read."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from clipguard.compute.device import array, here
from clipguard.lab.attacks.learned import FITTING, NetAttack, required
from clipguard.lab.attacks.protocol import Rows
from clipguard.lab.attacks.row_choice import highest
from clipguard.lab.attacks.tensors import Pixels, batches, chunk_of, descend, pixels, transformed
from clipguard.lab.attacks.unet import UNet
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


@dataclass(frozen=True, kw_only=True)
class GCB(NetAttack):
    """Clean-image: labels of images that already show the trigger change, after the GCB paper (AAAI 2026).

    Faithful: a conditional InfoGAN is trained on the clean data. A U-Net G writes a Bernoulli code c into an
    image, D separates its images from real ones given the class, and Q reads the code back (L_GAN + l
    L_info). The images of other classes that Q scores highest get the target's label (published: 1 % of
    all). Test images become G(x, 1). Chosen, since they are unpublished: all nets and their sizes, l, the
    hinge loss and the rates. G makes a smooth, bounded change, and Q learns from blurred and noisy images. A
    small net would else agree with G on a faint watermark, which no natural image shows and no victim learns.
    What is left is mostly a tint (docs/attacks.md has figures).
    G is not given the class, since a test image comes without its label.

    Attributes:
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

    not_learned: ClassVar = ("rate", "target")

    def nets(self, seed: Seed) -> dict[str, nn.Module]:
        """Return G and Q before their training."""
        with seed.child("generator").torch_global():
            generator = Generator(self.width, self.strength)
        return {"generator": generator, "reader": _shallow_net(self, 1, seed.child("reader"))}

    def scores(self, images: Images) -> Float[np.ndarray, "n"]:
        """Return Q's logit of code 1 for every image.

        Raises:
            ClipguardError: the attack is not fitted.
        """
        reader, step = required(self.reader), chunk_of(images)
        parts = (images[start : start + step] for start in range(0, len(images), step))
        with torch.no_grad():
            return np.concatenate([array(reader(_view(coarse(pixels(part))))[:, 0]) for part in parts])

    def candidates(self, data: ImageSet) -> Rows:
        """Return the rows that can be relabelled: of other classes than the target."""
        return np.flatnonzero(data.labels != self.target)

    def rows(self, data: ImageSet, seed: Seed) -> Rows:
        """Return the candidates that show the code most; the seed is not used."""
        return highest(np.where(data.labels == self.target, -np.inf, self.scores(data.pixels)), self.rate)

    def training_images(self, data: ImageSet, rows: Rows, seed: Seed) -> Images:
        """Return the images as they are."""
        images: Images = data.images[rows]
        return images

    def trigger(self, images: Images) -> Images:
        """Return G(x, 1)."""
        generator = required(self.generator)
        return transformed(lambda x: generator(x, torch.ones(len(x), device=x.device)), images)

    def train(self, data: ImageSet, seed: Seed, progress: Progress) -> None:
        """Train G and Q by alternating steps of D and of G with Q."""
        generator, reader = required(self.generator), required(self.reader)
        critic = _shallow_net(self, len(data.class_names), seed.child("critic")).to(here())
        own = [*generator.parameters(), *reader.parameters()]
        optimizer, critic_optimizer = (
            torch.optim.Adam(weights, lr=self.lr, betas=(0.5, 0.999))
            for weights in (own, critic.parameters())
        )
        codes = seed.child("codes").torch()
        for epoch in range(self.epochs):
            for rows in batches(len(data), self.batch_size, seed.child("order", epoch)):
                x, labels = pixels(data.images[rows]), torch.from_numpy(data.labels[rows])[:, None].to(here())
                code = torch.randint(0, 2, (len(rows),), generator=codes).float().to(here())
                made = generator(x, code)
                both = critic(_view(torch.cat((x, made.detach()))))
                real, fake = both.gather(1, torch.cat((labels, labels)))[:, 0].split(len(x))
                descend(critic_loss(real, fake), critic_optimizer)
                generator_loss = -critic(_view(made)).gather(1, labels).mean()
                blurred = coarse(made)
                noise = torch.randn(blurred.shape, generator=codes).to(here())
                logits = reader(_view(blurred + self.noise * noise))[:, 0]
                code_loss = F.binary_cross_entropy_with_logits(logits, code)
                descend(generator_loss + self.info_weight * code_loss, optimizer)
            progress(FITTING, epoch + 1, self.epochs)


def _shallow_net(attack: GCB, outputs: int, seed: Seed) -> ShallowNet:
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
