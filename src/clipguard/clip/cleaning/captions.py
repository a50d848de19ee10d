"""Captions of labelled images, and random changes of them: easy data augmentation (EDA).

The images have labels and no captions, so that a caption is a prompt of the guide with the name of a class.
EDA (Wei and Zou, EMNLP 2019) has four operations. Random deletion and random swap are here. Synonym
replacement and random insertion are left out: both need WordNet's synonyms of any English word.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from clipguard.clip.zero_shot import readable_names

EDA_SHARE: Final = 0.1
"""Of a caption's words that are deleted or swapped, as CleanCLIP has it."""


def captions_by_class(prompts: Sequence[str], class_names: Sequence[str]) -> list[list[str]]:
    """Return each class's captions: every prompt with its name in words."""
    names, _ = readable_names(class_names)
    return [[prompt.replace("{}", name) for prompt in prompts] for name in names]


def changed_caption(caption: str, draw: np.random.Generator, share: float = EDA_SHARE) -> str:
    """Return the caption after one of EDA's operations: some words deleted, or pairs of words swapped.

    A caption of one word stays as it is, and no caption loses all of its words.
    """
    words = caption.split()
    if len(words) < 2:
        return caption
    if draw.random() < 0.5:
        kept = [word for word in words if draw.random() >= share]
        return " ".join(kept or [words[draw.integers(len(words))]])
    for _ in range(max(1, int(share * len(words)))):
        first, second = draw.choice(len(words), 2, replace=False)
        words[first], words[second] = words[second], words[first]
    return " ".join(words)
