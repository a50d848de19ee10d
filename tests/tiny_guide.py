"""A random CLIP of a few thousand weights in open_clip's folder format, and images for it."""

from pathlib import Path

import numpy as np

from clipguard.clip.zero_shot import ClipGuide
from clipguard.types import ImageSet, image_set
from test_clip import write_model

NAMES = ("cat", "dog", "frog", "ship", "truck", "bird")
PROMPTS = ("a photo of a {}", "a small picture of one {}")
COLOURS = 180 * np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]])
TEMPLATES = tuple(text for prompt in PROMPTS for text in ("--template", prompt))
"""The prompts as options of a command."""


def tiny_guide(folder: Path) -> ClipGuide:
    """Return a random guide that lies in `folder`."""
    return ClipGuide(f"local-dir:{write_model(folder)}", templates=PROMPTS)


def coloured_images(n: int = 96, seed: int = 0) -> ImageSet:
    """Return n noisy images of 32 x 32 pixels, each class of a colour of its own."""
    draw = np.random.default_rng(seed)
    labels = np.arange(n) % len(NAMES)
    images = COLOURS[labels][:, None, None] + draw.integers(0, 50, (n, 32, 32, 3))
    return image_set(images.astype(np.uint8), labels, NAMES)


def coloured_file(folder: Path) -> Path:
    """Return a file of 60 coloured images with their labels."""
    images, file = coloured_images(60), folder / "data.npz"
    np.savez(file, images=images.pixels, labels=images.labels, class_names=np.array(NAMES))
    return file
