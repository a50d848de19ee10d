"""CleanCLIP and ABD: two ways to take a backdoor out of a guide. They differ in how images are changed.

**CleanCLIP** (Bansal et al., ICCV 2023) changes images by AutoAugment. Published are both losses with weights
1 and 1, AdamW with weight decay 0.1 and betas 0.9 and 0.999, batches of 64, 10 epochs, 50 steps of warm-up.
Its rate of 1e-5 belongs to 100,000 pairs; here it is 3e-4, over 4 epochs.

**ABD** (Kuang et al., arXiv 2409.15968) puts universal adversarial patterns on images, because these come to
lie where triggered images lie, and tunes images and patterned images together, and texts and changed texts.
Published is a generator that learns one patch of 3 % of the image for 20 epochs. Its code and the weights of
its losses are unpublished. Chosen here:

* cells of a grid in place of a generator: fewer weights, the same result for every image;
* the cross-entropy of one class's text as the loss by which a pattern comes to lie at a backdoor. Which class
  that is, nobody knows: so there is a pattern for each class, and a class is drawn the more often, the more
  images its pattern moves on its own;
* 2 % of the image, 60 steps, as in the check for backdoors, but without its squares of one colour;
* patterns for 20 classes at most, drawn at random;
* weights 1 and 1 of CLIP's loss and of the in-modal losses, and the rest as in CleanCLIP.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Float64

from clipguard.clip.cleaning.fine_tuning import ChangedImages, FineTuning, fine_tune
from clipguard.clip.cleaning.patterns import Inversion, Pattern, called, inverted_pattern
from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.lanes import in_lanes
from clipguard.errors import ClipguardError
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet, StepProgress

Method = Literal["cleanclip", "abd"]

MOST_PATTERNS: Final = 20
"""Classes with a pattern, at most: each costs some seconds to minutes."""

MOST_IMAGES: Final = 256
"""Images that patterns are made of, and as many that they are tried on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaning:
    """How a guide is cleaned.

    Attributes:
        method: see above.
        fine_tuning: of both methods.
        inversion: of ABD's patterns.
    """

    method: Method = "abd"
    fine_tuning: FineTuning = field(default_factory=FineTuning)
    inversion: Inversion = field(default_factory=Inversion)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleaned:
    """What a cleaning gives.

    Attributes:
        network: fine-tuned.
        losses: mean of each epoch.
        pattern_classes: that ABD made a pattern for, ascending; none with CleanCLIP.
    """

    network: Any
    losses: tuple[float, ...]
    pattern_classes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UniversalPatterns:
    """A pattern for each of some classes.

    Attributes:
        patterns: one a class.
        targets: the classes.
        weights: how often each is to be drawn; they sum to one.
    """

    patterns: tuple[Pattern, ...]
    targets: tuple[int, ...]
    weights: Float64[np.ndarray, "p"]


def cleaned(
    guide: ClipGuide, data: ImageSet, settings: Cleaning, seed: Seed, progress: StepProgress
) -> Cleaned:
    """Return a copy of the guide's network without what the method takes out; the guide stays as it is.

    Args:
        guide: that may have a backdoor.
        data: images of the size that the guide's preprocessing gives, with labels that are not poisoned.
        settings: see there.
        seed: of all that is drawn.
        progress: called after each step of the fine-tuning.

    Raises:
        ClipguardError: too few images, or the loss is not finite.
    """
    if len(data) < 2:
        raise ClipguardError(f"{len(data)} images are left to clean the guide with: give two or more")
    changed: ChangedImages = autoaugmented
    pattern_classes: tuple[int, ...] = ()
    if settings.method == "abd":
        made = universal_patterns(guide, data, settings.inversion, seed)
        changed, pattern_classes = partial(patterned, made.patterns, made.weights), made.targets
    tuned = fine_tune(guide, data, changed, settings.fine_tuning, seed, progress)
    return Cleaned(network=tuned.network, losses=tuned.losses, pattern_classes=tuple(sorted(pattern_classes)))


def autoaugmented(images: Images, seed: Seed) -> Images:
    """Return each image after operations of AutoAugment's policy for ImageNet (Cubuk et al., CVPR 2019)."""
    from PIL import Image
    from torchvision.transforms import AutoAugment

    policy = AutoAugment()
    # The policy draws from torch's global generator.
    with seed.torch_global():
        return np.stack([np.asarray(policy(Image.fromarray(image))) for image in images])


def patterned(
    patterns: Sequence[Pattern], weights: Float64[np.ndarray, "p"], images: Images, seed: Seed
) -> Images:
    """Return each image with a pattern that is drawn by the weights, which sum to one."""
    chosen = seed.generator().choice(len(patterns), len(images), p=weights)
    out = np.empty_like(images)
    for number in np.unique(chosen):
        out[chosen == number] = patterns[number].apply(images[chosen == number])
    return out


def universal_patterns(
    guide: ClipGuide, data: ImageSet, settings: Inversion, seed: Seed
) -> UniversalPatterns:
    """Return a pattern for each class, for `MOST_PATTERNS` at most, drawn at random.

    A pattern counts by the images that it moves to its class, not by those that the guide calls so anyway.

    Raises:
        ClipguardError: no class has images of others to make a pattern of, and to try it on.
    """
    classes = guide.class_embeddings(data.class_names)
    draw = seed.child("patterns").generator()
    targets = draw.permutation(len(classes))[:MOST_PATTERNS].tolist()
    some = draw.permutation(len(data))[: 2 * MOST_IMAGES]
    halves = [data.take(np.sort(part)) for part in np.array_split(some, 2)]

    targets = [one for one in targets if all((half.labels != one).any() for half in halves)]
    if not targets:
        raise ClipguardError(f"{len(data)} images are too few for patterns: give more, or use CleanCLIP")

    before = called(guide.clip, halves[1].pixels, classes)

    def made(target: int) -> tuple[Pattern, float]:
        made_of = halves[0].images[halves[0].labels != target]
        fresh = halves[1].images[(halves[1].labels != target) & (before != target)]
        one = inverted_pattern(guide.clip, made_of, classes, target, settings, seed.child("pattern", target))
        if not len(fresh):
            return one, 0.0
        return one, float(np.mean(called(guide.clip, one.apply(fresh), classes) == target))

    results: list[Any] = in_lanes([partial(made, target) for target in targets])
    patterns, reached = zip(*results, strict=True)
    weights = np.array(reached) ** 2 + 1e-3
    return UniversalPatterns(patterns=patterns, targets=tuple(targets), weights=weights / weights.sum())
