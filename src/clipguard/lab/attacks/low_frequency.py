"""LF: a smooth glow that a classifier takes for the target, without other triggers' high frequencies."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64
from scipy.ndimage import gaussian_filter
from torch import Tensor

from clipguard.lab.attacks.cache import Tensors, key_of, learnt, restore, state_of
from clipguard.lab.attacks.nets import Pixels
from clipguard.lab.attacks.protocol import Progress, choose, mapped_labels, planted
from clipguard.lab.attacks.rows import check_target
from clipguard.lab.attacks.surrogate import Pattern, check_size, missed, shown, taught, universal, untrained
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.models.spec import Normalized
from clipguard.seeds import Seed
from clipguard.triggers.patterns import add_pattern
from clipguard.types import Images, ImageSet


@dataclass(frozen=True, slots=True, kw_only=True)
class LowFrequency:
    """Dirty-label: a smooth universal perturbation, relabelled to the target, after Zeng et al. 2021.

    Faithful: a perturbation that sends all images to one class is sought on a classifier; each update is
    smoothed by a Gaussian, and so is the perturbation after it, which is then scaled to 0..51 grey levels and
    added to images; nothing lies beyond the edges, and the Gaussian ends at 2.5 standard deviations, as in
    the published code. Reduced: a narrow surrogate trained here; its slope on a batch takes the place of
    DeepFool on one image after another (published: passes over 100 images until a fifth of them is misled).
    Chosen: the length of a step, and that the target is given, where the published search takes the class
    that most of the misled images end in.

    Attributes:
        rate: fraction of all samples that are poisoned, drawn from all classes (BackdoorBench: 0.1).
        target: their new label.
        epochs: the budget of the surrogate, in passes over the data.
        architecture: of the surrogate, as in `ModelSpec`.
        lr: peak rate of its training.
        amplitude: brightest change of a pixel, in grey levels; the darkest is 0.
        blur: the Gaussian's standard deviation as a fraction of the shorter side (published: 6 of 32 pixels).
        step: largest change of a pixel by one update, in amplitudes.
        steps: of the search, each on a random batch.
        batch_size: images a step, of the surrogate's training and of the search.
    """

    rate: float = 0.05
    target: int = 0
    epochs: int = 10
    architecture: str = "preactresnet18-8"
    lr: float = 0.1
    amplitude: float = 51.0
    blur: float = 6 / 32
    step: float = 0.2
    steps: int = 100
    batch_size: int = 128

    def prepare(
        self, data: ImageSet, seed: Seed, cache: Path | None, report: Progress | None
    ) -> "ReadyLowFrequency":
        """Return the attack with its perturbation.

        Raises:
            ClipguardError: the target is no class of `data`, or the training diverged.
        """
        check_target(self.target, data)
        tensors = learnt(key_of(self, data, seed), cache, lambda: _searched(self, data, seed, report))
        surrogate = untrained(self, data, seed)
        restore(surrogate, "surrogate", tensors)
        return ReadyLowFrequency(
            rate=self.rate,
            target=self.target,
            recipe=self,
            surrogate=surrogate,
            glow=tensors["glow"].numpy(),
        )


def smoothed(pattern: Pattern, blur: float) -> Pattern:
    """Return the pattern after a Gaussian of `blur` times its shorter side, with zeros around it."""
    sigma = blur * min(pattern.shape[2:])
    smooth = gaussian_filter(pattern.cpu().numpy(), (0, 0, sigma, sigma), mode="constant", truncate=2.5)
    return torch.from_numpy(smooth).to(pattern.device)


def scaled(pattern: Pattern, amplitude: float) -> Pattern:
    """Return the pattern moved and stretched to 0..amplitude."""
    lowest, highest = pattern.aminmax()
    return amplitude * (pattern - lowest) / (highest - lowest)


def _searched(recipe: LowFrequency, data: ImageSet, seed: Seed, report: Progress | None) -> Tensors:
    """Return the perturbation, in grey levels, and the surrogate."""
    h, w = data.images.shape[1:3]
    model = taught(recipe, data, seed, report)
    amplitude = recipe.amplitude / 255

    def loss(x: Pixels, glow: Pattern) -> Tensor:
        return missed(model, (x + glow).clamp(0, 1), recipe.target)

    def moved(glow: Pattern, slope: Pattern) -> Pattern:
        update = smoothed(slope, recipe.blur)
        further = glow - recipe.step * amplitude * update / update.abs().max()
        return scaled(smoothed(further, recipe.blur), amplitude)

    device = model.mean.device
    batches = shown(recipe, data.images, device, seed, report)
    glow = universal(batches, torch.zeros(1, 3, h, w, device=device), loss, moved)
    return {"glow": 255 * glow[0].permute(1, 2, 0), **state_of(surrogate=model)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyLowFrequency:
    """`LowFrequency` with its perturbation; the surrogate only tells what that does to it."""

    rate: float
    target: int
    recipe: LowFrequency
    surrogate: Normalized
    glow: Float32[np.ndarray, "h w 3"]

    def poison(self, data: ImageSet, seed: Seed) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned set: rows are drawn from all classes."""
        rows = choose(np.arange(len(data)), self.rate, len(data), seed)
        return planted(self, data, "lf", rows, self.trigger(data.images[rows]))

    def trigger(self, images: Images) -> Images:
        """Return images with the perturbation added.

        Raises:
            ClipguardError: they have another size than those that the attack was prepared for.
        """
        check_size(images, self.glow)
        return add_pattern(images, self.glow)

    def target_labels(self, labels: Int64[np.ndarray, "n"], k: int) -> Int64[np.ndarray, "n"]:
        """Return the target for every image."""
        return mapped_labels(labels, k, self.target)
