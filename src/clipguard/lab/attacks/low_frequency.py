"""LF: a smooth glow that a classifier takes for the target, without other triggers' high frequencies."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float32
from scipy.ndimage import gaussian_filter
from torch import Tensor

from clipguard.lab.attacks.surrogate import (
    Pattern,
    SurrogateAttack,
    search_batches,
    surrogate_of,
    target_loss,
    universal,
)
from clipguard.lab.attacks.tensors import Pixels
from clipguard.seeds import Seed
from clipguard.triggers.patterns import add_pattern
from clipguard.types import Images, ImageSet, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class LowFrequency(SurrogateAttack):
    """Dirty-label: a smooth universal perturbation, labelled with the target, after Zeng et al. 2021.

    Faithful: a perturbation that sends all images to one class is sought on a classifier. A Gaussian smooths
    each update, and the perturbation after it, which is then scaled to 0..51 grey levels and added to images.
    Nothing lies beyond the edges, and the Gaussian ends at 2.5 standard deviations, as in the published code.
    Reduced: a narrow surrogate trained here; its slope on a batch takes the place of DeepFool on one image
    after another (published: passes over 100 images until a fifth of them is misled). Chosen: the length of a
    step, and that the target is given. The published search takes the class that most misled images end in.

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
        pattern: the perturbation, in grey levels; learned.
    """

    name: ClassVar = "lf"
    epochs: int = 10
    architecture: str = "preactresnet18-8"
    lr: float = 0.1
    amplitude: float = 51.0
    blur: float = 6 / 32
    step: float = 0.2
    steps: int = 100
    batch_size: int = 128
    pattern: Float32[np.ndarray, "h w 3"] | None = field(default=None, compare=False, repr=False)

    def trigger(self, images: Images) -> Images:
        """Return images with the perturbation added.

        Raises:
            ClipguardError: the attack is not fitted, or was fitted to images of another size.
        """
        return add_pattern(images, self.pattern_for(images))

    def search(self, data: ImageSet, seed: Seed, progress: Progress) -> Tensor:
        """Return the perturbation, in grey levels.

        Raises:
            ClipguardError: the training of the surrogate diverged.
        """
        h, w = data.images.shape[1:3]
        model = surrogate_of(self, data, seed, progress)
        amplitude = self.amplitude / 255

        def loss(x: Pixels, glow: Pattern) -> Tensor:
            return target_loss(model, (x + glow).clamp(0, 1), self.target)

        def step(glow: Pattern, slope: Pattern) -> Pattern:
            update = smoothed(slope, self.blur)
            further = glow - self.step * amplitude * update / update.abs().max()
            return scaled(smoothed(further, self.blur), amplitude)

        device = model.mean.device
        batches = search_batches(self, data.images, device, seed, progress)
        glow = universal(batches, torch.zeros(1, 3, h, w, device=device), loss, step)
        return 255 * glow[0].permute(1, 2, 0)


def smoothed(pattern: Pattern, blur: float) -> Pattern:
    """Return the pattern after a Gaussian of `blur` times its shorter side, with zeros around it."""
    sigma = blur * min(pattern.shape[2:])
    smooth = gaussian_filter(pattern.cpu().numpy(), (0, 0, sigma, sigma), mode="constant", truncate=2.5)
    return torch.from_numpy(smooth).to(pattern.device)


def scaled(pattern: Pattern, amplitude: float) -> Pattern:
    """Return the pattern moved and stretched to 0..amplitude."""
    lowest, highest = pattern.aminmax()
    return amplitude * (pattern - lowest) / (highest - lowest)
