"""LC: target-class images that a robust net finds hard, so that a victim has to lean on the trigger."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from clipguard.compute.training import LossFunction, Recipe, fit
from clipguard.lab.attacks.cache import Tensors, key_of, learnt
from clipguard.lab.attacks.nets import Pixels, chunk_of, logits_of, pixels, to_images
from clipguard.lab.attacks.protocol import Progress, choose, mapped_labels, planted
from clipguard.lab.attacks.rows import check_target, places_of
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.models.spec import ModelSpec, Normalized, build
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet

_CHUNK = 100
_CHECKER = 255 * np.array([[0, 0, 1], [0, 1, 0], [1, 0, 1]], dtype=np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelConsistent:
    """Clean-label: hard images of the target class with a checker in four corners, after Turner et al. 2019.

    Faithful: images of the target class are moved by untargeted PGD on an adversarially trained net (L-inf
    8/255, step 1.5/255, 100 steps), then a 3x3 checker is stamped in all four corners; labels stay; test
    images carry the checkers only. Reduced: the net is narrow and trained half on clean images, half on ones
    after a single random-start gradient step (Wong et al. 2020), where the published one is a ResNet trained
    against PGD. Chosen: the checker is mirrored from corner to corner, so that a mirrored image carries it.

    Attributes:
        rate: fraction of all samples that are poisoned; they lie in the target class.
        target: class that the backdoor leads to.
        epochs: the budget of the robust net, in passes over the data.
        architecture: of the robust net, as in `ModelSpec`.
        lr: peak rate of its training.
        bound: largest change of a pixel by PGD, in [0, 1].
        step: of PGD, in [0, 1].
        steps: of PGD (published: 100).
    """

    rate: float = 0.05
    target: int = 0
    epochs: int = 10
    architecture: str = "preactresnet18-8"
    lr: float = 0.1
    bound: float = 8 / 255
    step: float = 1.5 / 255
    steps: int = 100

    def prepare(
        self, data: ImageSet, seed: Seed, cache: Path | None, report: Progress | None
    ) -> "ReadyLabelConsistent":
        """Return the attack with a hard version of every image of the target class.

        Raises:
            ClipguardError: the target is no class of `data`, or the training diverged.
        """
        check_target(self.target, data)
        # What cannot be poisoned afterwards is told before the training.
        choose(np.flatnonzero(data.labels == self.target), self.rate, len(data), seed)
        tensors = learnt(key_of(self, data, seed), cache, lambda: _hardened(self, data, seed, report))
        return ReadyLabelConsistent(
            rate=self.rate,
            target=self.target,
            recipe=self,
            ids=data.ids,
            labels=data.labels,
            rows=tensors["rows"].numpy(),
            hard=tensors["hard"].numpy(),
        )


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
        labels: what the images show.
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
    given = torch.tensor(labels)

    def loss(
        logits: Float[Tensor, "b k"], rows: Tensor, images: UInt8[Tensor, "b 3 h w"]
    ) -> Float[Tensor, ""]:
        shown, x = given[rows].to(logits.device), images.float() / 255
        noise = bound * (2 * torch.rand(x.shape, generator=generator) - 1)
        start = (x + noise.to(x.device)).clamp(0, 1)
        moved = pgd(model, x, shown, start, bound=bound, step=1.25 * bound, steps=1)
        attacked = F.cross_entropy(logits_of(model, moved), shown)
        return (F.cross_entropy(logits, shown) + attacked) / 2

    return loss


def _hardened(recipe: LabelConsistent, data: ImageSet, seed: Seed, report: Progress | None) -> Tensors:
    """Return the rows of the target class and their images after PGD."""
    h, w = data.images.shape[1:3]
    rows = np.flatnonzero(data.labels == recipe.target)
    chunks = np.array_split(rows, -(-len(rows) // chunk_of(h, w, _CHUNK))) if len(rows) else []
    total = recipe.epochs + len(chunks)
    spec = ModelSpec(architecture=recipe.architecture, num_classes=len(data.class_names), input_size=(h, w))
    model = build(spec, seed.child("init"))
    loss = robust_loss(model, data.labels, recipe.bound, seed.child("noise").torch())
    training = Recipe(epochs=recipe.epochs, lr=recipe.lr)
    told = None if report is None else lambda epoch: report(epoch, total)
    fit(model, data.images, np.arange(len(data)), loss, training, seed.child("fit"), told)
    model.requires_grad_(False).eval()
    hard = np.array(data.images[rows])
    done = 0
    for number, chunk in enumerate(chunks):
        x = pixels(data.images[chunk]).to(model.mean.device)
        shown = torch.from_numpy(data.labels[chunk]).to(x.device)
        moved = pgd(model, x, shown, x, bound=recipe.bound, step=recipe.step, steps=recipe.steps)
        hard[done : done + len(chunk)] = to_images(moved)
        done += len(chunk)
        if report is not None:
            report(recipe.epochs + number + 1, total)
    return {"rows": torch.from_numpy(rows), "hard": torch.from_numpy(hard)}


def paste_corners(images: Images) -> Images:
    """Return images with a 3x3 checker of black and white in all four corners, mirrored between them."""
    out = np.array(images)
    checker = _CHECKER[:, :, None]
    out[:, -3:, -3:] = checker
    out[:, -3:, :3] = checker[:, ::-1]
    out[:, :3, -3:] = checker[::-1]
    out[:, :3, :3] = checker[::-1, ::-1]
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyLabelConsistent:
    """`LabelConsistent` with its hard images.

    Attributes:
        rate: fraction of all samples that are poisoned.
        target: class that the backdoor leads to.
        recipe: the attack.
        ids: of the samples that were prepared for.
        labels: theirs.
        rows: of the target class, ascending.
        hard: their images after PGD, without checkers.
    """

    rate: float
    target: int
    recipe: LabelConsistent
    ids: tuple[str, ...]
    labels: Int64[np.ndarray, "n"]
    rows: Int64[np.ndarray, "m"]
    hard: UInt8[np.ndarray, "m h w 3"]

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned set; the rate counts over all samples, the rows are of the target class.

        Raises:
            ClipguardError: the attack was prepared for other data, or the target class is too small.
        """
        places = places_of(data, self.ids, self.labels)
        rows = choose(np.flatnonzero(data.labels == self.target), self.rate, len(data), seed)
        images = paste_corners(self.hard[np.searchsorted(self.rows, places[rows])])
        return planted(self, data, "lc", rows, images)

    def trigger(self, images: Images) -> Images:
        """Return images with the four checkers, nothing else."""
        return paste_corners(images)

    def target_labels(self, labels: Int64[np.ndarray, "n"], k: int) -> Int64[np.ndarray, "n"]:
        """Return the target for every image."""
        return mapped_labels(labels, k, self.target)
