"""Attacks that learn from the data, so small that one takes about a second, and a set to try them on."""

import numpy as np

from clipguard.lab.attacks.flip import FLIP
from clipguard.lab.attacks.gcb import GCB
from clipguard.lab.attacks.input_aware import InputAware
from clipguard.lab.attacks.label_consistent import LabelConsistent
from clipguard.lab.attacks.low_frequency import LowFrequency
from clipguard.lab.attacks.narcissus import Narcissus
from clipguard.lab.attacks.ssba import SSBA
from clipguard.lab.attacks.trojan_nn import TrojanNN
from clipguard.types import ImageSet, image_set

NAMES = ("cat", "dog", "frog")
TRAINED = {
    "lc": LabelConsistent(rate=0.1, epochs=1, steps=3, architecture="preactresnet18-4"),
    "ssba": SSBA(rate=0.1, epochs=2, width=4, batch_size=16),
    "input-aware": InputAware(
        rate=0.1, mask_epochs=1, epochs=1, width=4, batch_size=16, architecture="shallow-4"
    ),
    "flip": FLIP(rate=0.1, epochs=1, passes=2, architecture="shallow-4", batch_size=16, every=1),
    "gcb": GCB(rate=0.1, epochs=3, width=4, batch_size=16, lr=1e-2),
    "trojan-nn": TrojanNN(rate=0.1, epochs=2, steps=5, architecture="shallow-4", batch_size=16),
    "lf": LowFrequency(rate=0.1, epochs=2, steps=3, architecture="shallow-4", batch_size=16),
    "narcissus": Narcissus(rate=0.1, epochs=2, steps=4, architecture="shallow-4", batch_size=16),
}


def tiny_set(n: int = 60, size: tuple[int, int] = (16, 16), seed: int = 0) -> ImageSet:
    """Return n images of mid greys, a third of each brighter by its class; classes take turns."""
    draw = np.random.default_rng(seed)
    images = draw.integers(70, 130, (n, *size, 3), dtype=np.uint8)
    labels = np.arange(n) % len(NAMES)
    third = size[1] // 3
    for image, label in zip(images, labels, strict=True):
        image[:, third * label : third * (label + 1)] += 60
    return image_set(images, labels, NAMES, tuple(f"img{row:03d}" for row in range(n)))


def coloured_set(n: int = 60, size: tuple[int, int] = (16, 16), seed: int = 0) -> ImageSet:
    """Return n images of mid greys, more red, green or blue by their class: a mirror does not change it."""
    draw = np.random.default_rng(seed)
    images = draw.integers(70, 130, (n, *size, 3), dtype=np.uint8)
    labels = np.arange(n) % 3
    images[np.arange(n), :, :, labels] += 30
    return image_set(images, labels, ("red", "green", "blue"))
