"""Four attacks by somebody who knows clipguard, against its verdict.

`decoy` fills the fixed share of the entropy map with a loud attack and hides a second one. `cover` puts the
trigger on as many samples again, with their own labels. `innocent` marks a class that nothing is wrong with.
`adversarial` perturbs poisoned images until the public guide reads the target in them.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch

from clipguard.clip.zero_shot import ClipGuide
from clipguard.lab.attacks import attack_named
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet, image_set

Made = tuple[ImageSet, PoisonTruth]

EPSILON: Final = 8
"""Grey levels by which a pixel is perturbed, at most: the customary bound (Madry et al. 2018)."""

STEPS: Final = 20


def decoy(data: ImageSet, options: dict[str, Any], draw: np.random.Generator) -> Made:
    """Return data with a tenth of BadNets for the class before the target, and a Blended attack on it."""
    loud = attack_named("badnets", rate=0.1, target=options["target"] - 1)
    hidden = attack_named("blended", rate=options["count"] / len(data), target=options["target"])
    first, truth = loud.poison(data, _seed(draw))
    return _beside(first, truth.poisoned, hidden, draw)


def cover(data: ImageSet, options: dict[str, Any], draw: np.random.Generator) -> Made:
    """Return data with BadNets, and its trigger on twice as many samples that keep their labels."""
    attack = attack_named("badnets", rate=options["count"] / len(data), target=options["target"])
    changed, truth = attack.poison(data, _seed(draw))
    rows = draw.choice(np.flatnonzero(~truth.poisoned), 2 * options["count"], replace=False)
    images = changed.pixels.copy()
    images[rows] = attack.trigger(images[rows])
    return image_set(images, changed.labels, data.class_names, data.ids), truth


def innocent(data: ImageSet, options: dict[str, Any], draw: np.random.Generator) -> Made:
    """Return data with a mark on 150 samples of the class after the target, and a Blended attack on it."""
    other = options["target"] + 1
    rows = draw.choice(np.flatnonzero(data.labels == other), 150, replace=False)
    images = data.pixels.copy()
    images[rows, 1:7, 1:7] = draw.integers(0, 2, (6, 6, 3), dtype=np.uint8) * 255
    marked = np.zeros(len(data), dtype=bool)
    marked[rows] = True
    attack = attack_named("blended", rate=options["count"] / len(data), target=options["target"])
    return _beside(image_set(images, data.labels, data.class_names, data.ids), marked, attack, draw)


def adversarial(data: ImageSet, options: dict[str, Any], draw: np.random.Generator) -> Made:
    """Return data with BadNets whose images the embedded guide takes for the target."""
    attack = attack_named("badnets", rate=options["count"] / len(data), target=options["target"])
    _, truth = attack.poison(data, (seed := _seed(draw)))
    rows = np.flatnonzero(truth.poisoned)
    images = data.pixels.copy()
    images[rows] = _read_as(images[rows], data.class_names, options["target"])
    return attack.poison(image_set(images, data.labels, data.class_names, data.ids), seed)


ADAPTIVE: Final[dict[str, Callable[[ImageSet, dict[str, Any], np.random.Generator], Made]]] = {
    "decoy": decoy,
    "cover": cover,
    "innocent": innocent,
    "adversarial": adversarial,
}


def _seed(draw: np.random.Generator) -> Seed:
    return Seed(int(draw.integers(2**31)))


def _beside(data: ImageSet, taken: np.ndarray, attack: Any, draw: np.random.Generator) -> Made:
    """Return data with a further attack on samples that are not taken; the truth is that of the attack."""
    changed, truth = attack.poison(data, _seed(draw))
    rows = np.flatnonzero(truth.poisoned & taken)
    images, labels = changed.pixels.copy(), changed.labels.copy()
    images[rows], labels[rows] = data.pixels[rows], data.labels[rows]
    poisoned = truth.poisoned & ~taken
    return image_set(images, labels, data.class_names, data.ids), PoisonTruth(
        poisoned=poisoned,
        cover=np.zeros(len(data), dtype=bool),
        original_labels=data.labels,
        attack=truth.attack,
        target=truth.target,
    )


def _read_as(images: Images, names: tuple[str, ...], target: int) -> Images:
    """Return the images perturbed by `EPSILON` at most (projected gradient descent) for the guide `mini`."""
    guide = ClipGuide("mini")
    clip = guide.clip
    texts = torch.from_numpy(clip.embed_texts([f"a photo of a {name}" for name in names]))
    height, width = clip.preprocessing.size
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1) for values in (clip.preprocessing.mean, clip.preprocessing.std)
    )
    start = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float()
    moved = start.clone()
    for _ in range(STEPS):
        moved.requires_grad_(True)
        seen = torch.nn.functional.interpolate(moved / 255, (height, width), mode="bicubic", antialias=True)
        vectors = clip.network.encode_image((seen - mean) / std, normalize=True)
        logits = clip.logit_scale * vectors @ texts.T
        loss = torch.nn.functional.cross_entropy(logits, torch.full((len(images),), target))
        (gradient,) = torch.autograd.grad(loss, moved)
        with torch.no_grad():
            moved = moved - EPSILON / 4 * gradient.sign()
            moved = (start + (moved - start).clamp(-EPSILON, EPSILON)).clamp(0, 255)
    return moved.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
