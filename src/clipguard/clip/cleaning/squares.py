"""Squares of one colour, tried at many places: what a slope does not lead to, trying finds.

A guide that is backdoored by a patch is indifferent to it until most of it is there. A pattern that is
changed step by step therefore misses it. Squares of a few colours reach it without any slope.
"""

import math
from collections.abc import Callable
from itertools import product
from typing import Final

import numpy as np
from jaxtyping import Float32

from clipguard.clip.cleaning.patterns import CELLS, Pattern, called
from clipguard.clip.model import Clip
from clipguard.compute.lanes import go_on
from clipguard.types import Images

COLOURS: Final = ((1, 1, 1), (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
"""Red, green and blue of each square."""

PLACES: Final = 8
"""A side of the image: squares of 2 % of it lie side by side, without a gap or an overlap."""


def squares(share: float) -> list[Pattern]:
    """Return squares that take at most `share` of the image, of each colour at each place."""
    side = max(1, int(CELLS * math.sqrt(share)))
    places = np.linspace(0, CELLS - side, PLACES).round().astype(int)
    made = []
    for colour, top, left in product(COLOURS, places, places):
        mask, colours = np.zeros((CELLS, CELLS), np.float32), np.zeros((CELLS, CELLS, 3), np.float32)
        mask[top : top + side, left : left + side] = 1
        colours[:] = colour
        made.append(Pattern(mask=mask, colours=colours))
    return made


def best_squares(
    clip: Clip,
    images: Images,
    classes: Float32[np.ndarray, "k d"],
    share: float,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[Pattern]:
    """Return for each class the square that sends it the most of the images that it does not have already.

    Args:
        clip: the guide's model.
        images: of any classes, of the size that its preprocessing gives.
        classes: embeddings of the classes' texts.
        share: of the image that a square may take.
        report: called with the squares that were tried, and with all of them.
    """
    tried, k = squares(share), len(classes)
    before = called(clip, images, classes)
    gained = np.zeros((len(tried), k), dtype=np.int64)
    for number, square in enumerate(tried):
        go_on()
        after = called(clip, square.apply(images), classes)
        gained[number] = np.bincount(after[after != before], minlength=k)
        report(number + 1, len(tried))
    return [tried[number] for number in gained.argmax(0)]
