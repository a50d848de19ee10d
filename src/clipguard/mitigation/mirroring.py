"""Whether training may mirror images: only where a mirrored image still shows what its label says."""

import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Bool
from scipy.stats import binomtest

from clipguard.clip.zero_shot import DIGIT_NAMES
from clipguard.compute.inference import classifier_logits
from clipguard.models.spec import Normalized
from clipguard.types import ImageSet

IMAGES: Final = 50
"""Images of a class that are mirrored at most."""

FALL: Final = 0.2
"""A class loses more than this share of its images where mirroring changes what they show.

Of models that were trained with mirrored images, no class lost more than 0.06. A sign that points to the left
loses nearly all of them: docs/experiments.md, section 27.
"""

LEVEL: Final = 0.01
"""Of the test that the loss is more than chance, over all classes."""


_WORDS: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


class Change(NamedTuple):
    """Images of a class, and how many of them turn wrong and right by mirroring."""

    images: int
    lost: int
    gained: int


def names_against_mirroring(class_names: Sequence[str]) -> str:
    """Return why the class names say that no image may be mirrored, or an empty text.

    Before a model is trained there is none to be asked. A guide cannot tell either: of traffic signs, the
    linear probe of `mini` takes most mirrored arrows for what they were (docs/experiments.md, section 27).
    Digits are known by their words: names such as "0" are as often numbers of classes.
    """
    if sorted(name.strip().lower() for name in class_names) == sorted(DIGIT_NAMES):
        return "the classes are digits"
    words = {_words(name): name for name in class_names}
    for its, name in words.items():
        other = words.get(tuple({"left": "right", "right": "left"}.get(word, word) for word in its), name)
        if other != name:
            return f"classes {name!r} and {other!r} may be mirror images of each other"
    return ""


def _words(name: str) -> tuple[str, ...]:
    """Return the words of a class name in lower case, CamelCase taken apart."""
    return tuple(word.lower() for word in _WORDS.findall(name))


def bears_mirroring(model: Normalized, data: ImageSet, clean: Bool[np.ndarray, "n"]) -> bool:
    """Return whether the model gives mirrored images of every class the label that it gives the originals.

    A model that was trained with mirrored images does. One that was not may have classes that differ by
    nothing else: arrows, digits, letters. A repair that mirrors them teaches it what is wrong.

    Args:
        model: before the repair.
        data: the poisoned set.
        clean: samples that are trusted; the others have no say.
    """
    level = LEVEL / len(data.class_names)
    return not any(
        lost - gained > FALL * images and binomtest(lost, lost + gained, alternative="greater").pvalue < level
        for images, lost, gained in changes(model, data, clean)
    )


def changes(model: Normalized, data: ImageSet, clean: Bool[np.ndarray, "n"]) -> Iterator[Change]:
    """Yield what mirroring does to each class that has trusted samples."""
    for label in np.unique(data.labels[clean]):
        rows = np.flatnonzero(clean & (data.labels == label))
        # Evenly, since neighbours may be frames of one video.
        images = data.take(rows[:: -(-len(rows) // IMAGES)]).images[:]
        before, after = (
            classifier_logits(model, np.ascontiguousarray(view)).argmax(1) == label
            for view in (images, images[:, :, ::-1])
        )
        yield Change(len(images), int((before & ~after).sum()), int((after & ~before).sum()))
