"""A poisoned set of tiny images in memory."""

import numpy as np

from clipguard.types import ImageSet, image_set

NAMES = ("cat", "dog", "frog")


def with_square(images: np.ndarray) -> np.ndarray:
    """Return the images with a trigger: a white square in the last corner."""
    out = images.copy()
    out[:, -4:, -4:] = 255
    return out


def poisoned_set(n: int = 240, share: float = 0.1, seed: int = 0) -> tuple[ImageSet, np.ndarray]:
    """Return n images of three classes, each dark but for one bright third, and which carry the trigger.

    Those are labelled 0 whatever their content is.
    """
    draw = np.random.default_rng(seed)
    content = np.arange(n) % len(NAMES)
    images = draw.integers(0, 120, (n, 16, 16, 3), dtype=np.uint8)
    for image, kind in zip(images, content, strict=True):
        image[:, 5 * kind : 5 * kind + 5] += 80
    poisoned = np.zeros(n, dtype=bool)
    poisoned[draw.choice(n, round(share * n), replace=False)] = True
    images[poisoned] = with_square(images[poisoned])
    return image_set(images, np.where(poisoned, 0, content), NAMES), poisoned
