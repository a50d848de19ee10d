"""Whether a second guide, and each prompt alone, read the classes as the guide does.

This moves neither partition nor verdict: it says whether the guide can be relied on.
"""

from dataclasses import replace
from typing import Final

import numpy as np

from clipguard.clip.zero_shot import Cosines
from clipguard.detection.competence import GuideComparison, compared_guides
from clipguard.detection.entropy_map import opinion
from clipguard.pipeline.scan import Scan
from clipguard.runs import ShardedArray
from clipguard.runs.summary import ClassDifference, OtherReading
from clipguard.types import Scores, chunks

SAME_MEANING: Final = 0.9999
"""Cosine of two classes from which the guide cannot tell them apart: unknown characters are read as one."""


def with_comparisons(scan: Scan) -> Scan:
    """Return the scan with what the second guide and each prompt alone say, against the guide.

    Raises:
        ClipguardError: a score is NaN or infinite.
    """
    context, labels, names = scan.context, scan.data.labels, scan.data.class_names

    def compared(other: Scores) -> GuideComparison:
        return compared_guides(labels, scan.likeliest, opinion(other, labels).likeliest, scan.num_classes)

    second = None
    if context.second_guide is not None:
        embeddings = ShardedArray.of(context.finished["second_embeddings"].path / "img_emb")
        second = compared(context.second_guide.logits(embeddings, names))
    if len(context.guide.prompts) == 1:
        return replace(scan, second_guide=second)
    alone = context.guide.logits_by_prompt(context.embeddings, names)
    return replace(scan, second_guide=second, prompts=tuple(map(compared, alone)))


def of_second_guide(scan: Scan) -> OtherReading | None:
    """Return how the second guide reads the labels; None without one."""
    guide, comparison = scan.context.second_guide, scan.second_guide
    return None if guide is None or comparison is None else _reading(scan, guide.name, comparison)


def of_prompts(scan: Scan) -> list[OtherReading]:
    """Return how each prompt alone reads the labels; none where there is only one."""
    pairs = zip(scan.context.guide.prompts, scan.prompts, strict=False)
    return [_reading(scan, prompt, comparison) for prompt, comparison in pairs]


def coinciding_names(scan: Scan) -> list[str]:
    """Return a line on classes whose names mean the same to the guide, if there are any."""
    logits, names = scan.guide.logits, scan.data.class_names
    if not isinstance(logits, Cosines):
        return []
    alike: list[str] = []
    for part in chunks(len(names)):
        first, second = np.nonzero(
            np.triu(logits.classes[part] @ logits.classes.T > SAME_MEANING, part.start + 1)
        )
        alike += [f"{names[part.start + a]!r} and {names[b]!r}" for a, b in zip(first, second, strict=True)]
    if not alike:
        return []
    return [
        f"the guide reads {len(alike)} pairs of class names as the same, first {', '.join(alike[:3])}: it "
        "cannot tell these classes apart; give words as classes"
    ]


def disagreement(scan: Scan) -> list[str]:
    """Return a line on the classes that the second guide reads better or worse, if there is any."""
    second = of_second_guide(scan)
    if second is None or not second.differs:
        return []
    first_few = ", ".join(
        f"{one.class_name} ({one.first:.1%} and {one.second:.1%})" for one in second.differs[:5]
    )
    return [
        f"the guides {scan.context.guide.name} and {second.name} agree with different shares of the labels "
        f"of {len(second.differs)} of {scan.num_classes} classes: {first_few}; compare a scan by the other"
    ]


def _reading(scan: Scan, name: str, comparison: GuideComparison) -> OtherReading:
    sizes = np.bincount(scan.data.labels, minlength=scan.num_classes)
    return OtherReading(
        name=name,
        agreement=float(np.average(comparison.second, weights=sizes)),
        same=comparison.same,
        differs=[
            ClassDifference(
                class_name=scan.data.class_names[label],
                first=float(comparison.first[label]),
                second=float(comparison.second[label]),
            )
            for label in np.flatnonzero(comparison.differs)
        ],
    )
