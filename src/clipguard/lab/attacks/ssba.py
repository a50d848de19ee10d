"""SSBA: a net hides the same short secret in every poisoned image as a residual that differs by image."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from clipguard.compute.device import here
from clipguard.lab.attacks.learned import FITTING, NetAttack, required
from clipguard.lab.attacks.targeted import MappedAttack
from clipguard.lab.attacks.tensors import Pixels, batches, descend, pixels, transformed
from clipguard.lab.attacks.unet import UNet
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet, Progress

Bits = Float[Tensor, "b bits"]

_SIDE = 16
_GRID = 4


class Encoder(nn.Module):
    """Image and secret to image: the residual is bounded by `strength`, in [0, 1]."""

    def __init__(self, bits: int, width: int, strength: float) -> None:
        super().__init__()
        self.spread = nn.Linear(bits, 3 * _SIDE * _SIDE)
        self.unet = UNet(6, 3, width)
        self.strength = strength

    def forward(self, x: Pixels, secret: Bits) -> Pixels:
        """Return the images with the secret in them."""
        plane = torch.relu(self.spread(secret - 0.5)).view(-1, 3, _SIDE, _SIDE)
        plane = F.interpolate(plane, size=list(x.shape[2:]))
        residual = self.strength * torch.tanh(self.unet(torch.cat((x - 0.5, plane), 1)))
        return (x + residual).clamp(0, 1)


class Decoder(nn.Module):
    """Image to logits of its secret's bits, read from a grid of places so that any size fits."""

    def __init__(self, bits: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((3, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(_GRID))
        self.head = nn.Linear(4 * width * _GRID * _GRID, bits)

    def forward(self, x: Pixels) -> Bits:
        """Return one logit a bit."""
        logits: Tensor = self.head(self.features((x - 0.5) / 0.25).flatten(1))
        return logits


def shifted(x: Pixels, shift: float, generator: torch.Generator) -> Pixels:
    """Return the batch moved by up to `shift` of its side, zero-padded, mirrored or not; for 0 as it is."""
    h, w = x.shape[2:]
    pad = round(shift * max(h, w))
    if not pad:
        return x
    top, left = torch.randint(0, 2 * pad + 1, (2,), generator=generator).tolist()
    moved = F.pad(x, (pad, pad, pad, pad))[:, :, top : top + h, left : left + w]
    return moved.flip(3) if bool(torch.rand(1, generator=generator) < 0.5) else moved


@dataclass(frozen=True, kw_only=True)
class SSBA(NetAttack, MappedAttack):
    """An invisible trigger, labelled with the target, after Li et al. 2021 (ISSBA).

    Published as sample-specific; what these nets hide is for the larger part the same in all images
    (docs/attacks.md has figures).

    Faithful: an encoder and a decoder in the manner of StegaStamp (Tancik et al. 2020) learn together to hide
    and to read random secrets of 20 bits. First the secret alone counts, then the picture too. Poisoned and
    test images all carry one fixed secret. Reduced: smaller nets, fewer epochs at a higher rate (published:
    20 epochs, 2 of them for the secret alone, Adam 1e-4); neither a critic nor LPIPS. In their place the
    residual is bounded, and its square is punished down to the published distance from the image. It is not
    punished further: 20 bits need so little that a victim would not learn them. StegaStamp simulates printing
    between the two nets; here images are shifted and mirrored, as victims do in training. A secret in fixed
    places is read sooner, but a victim that crops and mirrors misses it.

    Attributes:
        epochs: the budget, in passes over the data (published: 20).
        secret_epochs: how many of them, at the beginning, ask for the secret alone.
        bits: length of the secret.
        secret_seed: which secret it is.
        strength: largest change of a pixel, in [0, 1].
        psnr: distance from the image in dB beyond which no change is punished (published result: 27.2).
        image_weight: of the mean squared change of the pixels above that (published: 2, beside LPIPS).
        secret_weight: of the bits' cross-entropy.
        shift: largest shift between the nets, as a fraction of the longer side; 0 does not mirror either.
        lr: of Adam.
        batch_size: images a step.
        width: channels of the nets' first layers.
        encoder: hides secrets in images; learned.
    """

    name: ClassVar = "ssba"
    epochs: int = 6
    secret_epochs: int = 1
    bits: int = 20
    secret_seed: int = 0
    strength: float = 0.1
    psnr: float = 27.0
    image_weight: float = 100.0
    secret_weight: float = 1.5
    shift: float = 0.125
    lr: float = 1e-3
    batch_size: int = 32
    width: int = 16
    encoder: Encoder | None = field(default=None, compare=False, repr=False)

    not_learned: ClassVar = ("rate", "target", "secret_seed", "mapping")

    def nets(self, seed: Seed) -> dict[str, nn.Module]:
        """Return the encoder before its training."""
        with seed.child("encoder").torch_global():
            return {"encoder": Encoder(self.bits, self.width, self.strength)}

    def train(self, data: ImageSet, seed: Seed, progress: Progress) -> None:
        """Train the encoder together with a decoder, which is not kept."""
        train_decoder(self, required(self.encoder), data, seed, progress)

    def trigger(self, images: Images) -> Images:
        """Return images that carry the secret."""
        encoder, secret = required(self.encoder), self.secret()
        return transformed(lambda x: encoder(x, secret.to(x.device).expand(len(x), -1)), images)

    def secret(self) -> Float[Tensor, "bits"]:
        """Return the bits that every triggered image carries."""
        draw = Seed(self.secret_seed).child("secret").generator()
        return torch.from_numpy(draw.integers(0, 2, self.bits).astype(np.float32))


def train_decoder(attack: SSBA, encoder: Encoder, data: ImageSet, seed: Seed, progress: Progress) -> Decoder:
    """Return a decoder, trained together with the encoder on secrets drawn anew for every image."""
    with seed.child("decoder").torch_global():
        decoder = Decoder(attack.bits, attack.width).to(here())
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=attack.lr)
    generator = seed.child("bits").torch()
    for epoch in range(attack.epochs):
        image_weight = 0.0 if epoch < attack.secret_epochs else attack.image_weight
        for rows in batches(len(data), attack.batch_size, seed.child("order", epoch)):
            x = pixels(data.images[rows])
            bits = torch.randint(0, 2, (len(rows), attack.bits), generator=generator).float().to(here())
            hidden = encoder(x, bits)
            logits = decoder(shifted(hidden, attack.shift, generator))
            secret_loss = F.binary_cross_entropy_with_logits(logits, bits)
            excess = F.relu(F.mse_loss(hidden, x) - 10 ** (-attack.psnr / 10))
            descend(attack.secret_weight * secret_loss + image_weight * excess, optimizer)
        progress(FITTING, epoch + 1, attack.epochs)
    return decoder
