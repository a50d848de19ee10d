"""LC: target-class images that a robust net finds hard, so that a victim has to lean on the trigger."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from clipguard.compute.device import here
from clipguard.compute.recipes import Recipe
from clipguard.compute.training import EpochHook, LossFunction, fit
from clipguard.lab.attacks.cache import Tensors
from clipguard.lab.attacks.learned import FITTING, LearnedAttack, required
from clipguard.lab.attacks.protocol import Rows
from clipguard.lab.attacks.row_choice import places_of
from clipguard.lab.attacks.targeted import CleanLabelAttack
from clipguard.lab.attacks.tensors import Pixels, chunk_of, pixels, to_images
from clipguard.models.spec import ModelSpec, Normalized, build, logits_of
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet, Progress

_CHUNK = 100
_CHECKER = 255 * np.array([[0, 0, 1], [0, 1, 0], [1, 0, 1]], dtype=np.uint8)


@dataclass(frozen=True, kw_only=True)
class LabelConsistent(LearnedAttack, CleanLabelAttack):
    """Clean-label: hard images of the target class with a checker in four corners, after Turner et al. 2019.

    Faithful: images of the target class are moved by untargeted PGD on an adversarially trained net (L-inf
    8/255, step 1.5/255, 100 steps). A 3x3 checker is then pasted in all four corners. Labels stay; test
    images carry the checkers only. Reduced: the net is narrow. It is trained half on clean images, half on
    ones after a single random-start gradient step (Wong et al. 2020); the published one is a ResNet trained
    against PGD. Chosen: the checker is mirrored from corner to corner, so that a mirrored image carries it.

    Attributes:
        epochs: the budget of the robust net, in passes over the data.
        architecture: of the robust net, as in `ModelSpec`.
        lr: peak rate of its training.
        bound: largest change of a pixel by PGD, in [0, 1].
        step: of PGD, in [0, 1].
        steps: of PGD (published: 100).
        hard: the images of the target class after PGD, without checkers; learned.
    """

    name: ClassVar = "lc"
    epochs: int = 10
    architecture: str = "preactresnet18-8"
    lr: float = 0.1
    bound: float = 8 / 255
    step: float = 1.5 / 255
    steps: int = 100
    hard: UInt8[np.ndarray, "m h w 3"] | None = field(default=None, compare=False, repr=False)

    def learn(self, data: ImageSet, seed: Seed, progress: Progress) -> Tensors:
        """Return the images of the target class after PGD."""
        rows = np.flatnonzero(data.labels == self.target)
        chunks = np.array_split(rows, -(-len(rows) // chunk_of(data.pixels, _CHUNK)))
        total = self.epochs + len(chunks)
        model = _robust_net(self, data, seed, lambda epoch: progress(FITTING, epoch, total))
        hard = []
        for number, chunk in enumerate(chunks):
            x, labels = pixels(data.images[chunk]), torch.from_numpy(data.labels[chunk]).to(here())
            moved = pgd(model, x, labels, x, bound=self.bound, step=self.step, steps=self.steps)
            hard.append(to_images(moved))
            progress(FITTING, self.epochs + number + 1, total)
        return {"hard": torch.from_numpy(np.concatenate(hard))}

    def training_images(self, data: ImageSet, rows: Rows, seed: Seed) -> Images:
        """Return hard images with checkers."""
        fitted_to, hard = required(self.fitted_to), required(self.hard)
        of_target = np.flatnonzero(fitted_to.labels == self.target)
        return paste_corners(hard[np.searchsorted(of_target, places_of(data, fitted_to)[rows])])

    def trigger(self, images: Images) -> Images:
        """Return images with the four checkers, nothing else."""
        return paste_corners(images)


def pgd(  # noqa: PLR0913  # model, images and the search's published parameters: no two belong together
    model: Normalized,
    x: Pixels,
    labels: Int64[Tensor, "b"],
    start: Pixels,
    *,
    bound: float,
    step: float,
    steps: int,
) -> Pixels:
    """Return images within `bound` (L-inf) of `x` that raise the model's cross-entropy (Madry et al. 2018).

    Args:
        model: in evaluation mode, or its batch statistics are the batch's own.
        x: images in [0, 1].
        labels: true classes of the images.
        start: where the search begins.
        bound: largest change of a pixel.
        step: length of a step, along the gradient's sign.
        steps: how many.
    """
    moved = start.clone()
    for _ in range(steps):
        moved.requires_grad_()
        loss = F.cross_entropy(logits_of(model, moved), labels, reduction="sum")
        (slope,) = torch.autograd.grad(loss, [moved])
        moved = moved.detach() + step * slope.sign()
        moved = torch.clamp(moved, x - bound, x + bound).clamp(0, 1)
    return moved.detach()


def robust_loss(
    model: Normalized, labels: Int64[np.ndarray, "n"], bound: float, generator: torch.Generator
) -> LossFunction:
    """Return the mean of the cross-entropies on the batch and on the batch after one adversarial step.

    The step is 1.25 times the bound, from a random start within it (Wong et al. 2020); the mixture with clean
    images is Kurakin et al. 2017.
    """
    all_labels = torch.tensor(labels)

    def loss(
        logits: Float[Tensor, "b k"], rows: Tensor, images: UInt8[Tensor, "b 3 h w"]
    ) -> Float[Tensor, ""]:
        expected, x = all_labels[rows].to(logits.device), images.float() / 255
        noise = bound * (2 * torch.rand(x.shape, generator=generator) - 1)
        start = (x + noise.to(x.device)).clamp(0, 1)
        moved = pgd(model, x, expected, start, bound=bound, step=1.25 * bound, steps=1)
        attacked = F.cross_entropy(logits_of(model, moved), expected)
        return (F.cross_entropy(logits, expected) + attacked) / 2

    return loss


def _robust_net(attack: LabelConsistent, data: ImageSet, seed: Seed, progress: EpochHook) -> Normalized:
    """Return a net trained against one-step adversaries, for use only.

    It is no `train_classifier`: its loss attacks the very net that is trained.
    """
    size, k = data.images.shape[1:3], len(data.class_names)
    spec = ModelSpec.sized(architecture=attack.architecture, num_classes=k, input_size=size)
    model = build(spec, seed.child("init"))
    loss = robust_loss(model, data.labels, attack.bound, seed.child("noise").torch())
    recipe = Recipe(epochs=attack.epochs, lr=attack.lr)
    fit(model, data.images, np.arange(len(data)), loss, recipe, seed.child("fit"), progress)
    return model.requires_grad_(False).eval()


def paste_corners(images: Images) -> Images:
    """Return images with a 3x3 checker of black and white in all four corners, mirrored between them.

    A field of it is one pixel on images of up to 32, as published, and grows with larger ones.
    """
    out, field = np.array(images), max(1, round(min(images.shape[1:3]) / 32))
    checker = _CHECKER.repeat(field, 0).repeat(field, 1)[:, :, None]
    side = len(checker)
    out[:, -side:, -side:] = checker
    out[:, -side:, :side] = checker[:, ::-1]
    out[:, :side, -side:] = checker[::-1]
    out[:, :side, :side] = checker[::-1, ::-1]
    return out
