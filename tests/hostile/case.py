"""One hostile input: how it is made and what must come of it."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

Outcome = Literal["refused", "listed", "accepted"]
Reader = Literal["images", "names", "model", "guide", "benchmark"]

MARK = "executed"
"""The file that every booby trap would make in the working folder of its case."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A hostile input.

    Attributes:
        name: unique, `format: what is wrong`.
        expected: refused by one line, listed as unreadable while the rest is read, or read as it is.
        make: writes the input into a new folder and returns what is to be opened.
        reader: what opens it.
        limits: fields of `Limits` other than the usual.
        classes: class names, where the source has none of its own.
    """

    name: str
    expected: Outcome
    make: Callable[[Path], Any]
    reader: Reader = "images"
    limits: tuple[tuple[str, Any], ...] = ()
    classes: tuple[str, ...] | None = None


def trap(folder: Path) -> bytes:
    """Return a pickle that makes a file when it is loaded; written by hand, so that nothing pickles here."""
    command = f"touch '{folder / MARK}'".encode()
    return b"cposix\nsystem\n(X" + len(command).to_bytes(4, "little") + command + b"tR."


def pixels(height: int = 16, width: int = 16, seed: int = 0) -> np.ndarray:
    """Return noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return an image file's bytes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@cache
def good(seed: int = 0) -> bytes:
    """Return a sound PNG."""
    return encoded(Image.fromarray(pixels(seed=seed)))


def good_folder(root: Path, per_class: int = 6) -> Path:
    """Return an image folder of two classes in which nothing is wrong."""
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for row in range(per_class):
            (root / name / f"{row:02d}.png").write_bytes(good(100 * label + row))
    return root
