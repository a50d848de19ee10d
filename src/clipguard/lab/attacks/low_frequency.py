"""LF: a smooth glow that a classifier takes for the target, without other triggers' high frequencies."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from scipy.ndimage import gaussian_filter

from clipguard.compute.device import array
from clipguard.lab.attacks.cache import Tensors
from clipguard.lab.attacks.surrogate import Pattern, SurrogateAttack, misleading
from clipguard.seeds import Seed
from clipguard.triggers.patterns import add_pattern
from clipguard.types import Images, ImageSet, Progress


@dataclass(frozen=True, kw_only=True)
class LowFrequency(SurrogateAttack):
    """Dirty-label: a smooth universal perturbation, labelled with the target, after Zeng et al. 2021.

    Faithful: a perturbation that sends all images to one class is sought on a classifier. A Gaussian smooths
    each update, and the perturbation after it, which is then scaled to 0..51 grey levels and added to images.
    Nothing lies beyond the edges, and the Gaussian ends at 2.5 standard deviations, as in the published code.
    Reduced: a narrow surrogate trained here; its slope on a batch takes the place of DeepFool on one image
    after another (published: passes over 100 images until a fifth of them is misled). Chosen: the length of a
    step, and that the target is given. The published search takes the class that most misled images end in.
    BackdoorBench poisons 0.1 of all samples.

    Attributes:
        amplitude: brightest change of a pixel, in grey levels; the darkest is 0.
        blur: the Gaussian's standard deviation as a fraction of the shorter side (published: 6 of 32 pixels).
        step: largest change of a pixel by one update, in amplitudes.
    """

    name: ClassVar = "lf"
    amplitude: float = 51.0
    blur: float = 6 / 32
    step: float = 0.2

    def trigger(self, images: Images) -> Images:
        """Return images with the perturbation added."""
        return add_pattern(images, self.pattern_for(images))

    def learn(self, data: ImageSet, seed: Seed, progress: Progress) -> Tensors:
        """Return the perturbation, in grey levels."""
        amplitude = self.amplitude / 255

        def step(glow: Pattern, slope: Pattern) -> Pattern:
            update = smoothed(slope, self.blur)
            further = glow - self.step * amplitude * update / update.abs().max()
            return scaled(smoothed(further, self.blur), amplitude)

        return misleading(self, data, data.pixels, step, seed, progress)


def smoothed(pattern: Pattern, blur: float) -> Pattern:
    """Return the pattern after a Gaussian of `blur` times its shorter side, with zeros around it."""
    sigma = blur * min(pattern.shape[2:])
    smooth = gaussian_filter(array(pattern), (0, 0, sigma, sigma), mode="constant", truncate=2.5)
    return torch.from_numpy(smooth).to(pattern.device)


def scaled(pattern: Pattern, amplitude: float) -> Pattern:
    """Return the pattern moved and stretched to 0..amplitude."""
    lowest, highest = pattern.aminmax()
    return amplitude * (pattern - lowest) / (highest - lowest)
