"""The verdict: what is wrong with which class, and whether the data set is clean, suspicious or undecided."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
from jaxtyping import Bool

from clipguard.detection.class_evidence import FEWEST_SAMPLES, ClassEvidence
from clipguard.detection.removal import Agreement, Belief, Cause
from clipguard.runs.summary import Answer, Kind

MOST_UNREAD: Final = 0.5
"""Share of the samples in classes that the guide cannot read, above which nothing is called clean."""


MOST_LEFT_OUT: Final = 0.01
"""Share of the images that may have been left out, above which nothing is called clean.

Known triggers (canaries) are put on about 1 % of the samples: what was not read must not hold more poison.
"""


class Open(StrEnum):
    """Why nothing is decided, although nothing is suspicious."""

    TOO_FEW = "too few samples"
    NO_POWER = "power was not measured"
    NO_CANARY = "no canary fits"
    MISSED = "canaries were missed"
    UNREAD = "the guide cannot read the classes"
    LEFT_OUT = "images were left out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """What an unsuspicious data set was tested with.

    Attributes:
        samples: n.
        copies: with canaries.
        identified: of each canary, whether its class was suspected.
        unread: share of the samples in classes that the guide cannot read.
        left_out: share of the images that were left out: of other formats, hidden, linked, masks.
    """

    samples: int
    copies: int
    identified: tuple[bool, ...]
    unread: float
    left_out: float = 0.0


def kinds(
    tests: ClassEvidence,
    flagged_labels: Bool[np.ndarray, "k"],
    causes: dict[int, tuple[Belief, Cause]],
    agreements: dict[int, Agreement],
) -> dict[int, Kind]:
    """Return what is wrong with each suspicious class.

    A class with a trigger whose cause is natural is none, unless its labels are wrong. Where the cause stays
    open, what the guide says of the flagged labels tells a trigger from a shortcut.

    Args:
        tests: what the scores say.
        flagged_labels: classes in which samples are flagged for their label.
        causes: of classes with samples that are flagged for a trigger.
        agreements: of the same classes.
    """
    result: dict[int, Kind] = {}
    for label in np.flatnonzero(tests.triggered | tests.wrong_labels | flagged_labels).tolist():
        if not tests.triggered[label]:
            result[label] = "label-only poison"
            continue
        cause = causes[label][1] if label in causes else "undecided"
        wrong = label not in agreements or agreements[label].labels_are_wrong
        if cause != "natural":
            result[label] = "trigger" if wrong else "shortcut"
        elif flagged_labels[label] or tests.wrong_labels[label]:
            result[label] = "label-only poison"
    return result


def answer(suspicious: dict[int, Kind], tested: Tested) -> tuple[Answer, tuple[Open, ...]]:
    """Return the answer, and why it is open if it is.

    Clean is only what was shown to be testable: there are enough samples, every canary was identified, the
    guide reads the classes of at least half of the samples, and hardly any image was left out.
    """
    if suspicious:
        return "suspicious", ()
    if tested.samples < FEWEST_SAMPLES:
        return "undecided", (Open.TOO_FEW,)
    reasons = []
    if not tested.copies:
        reasons.append(Open.NO_POWER)
    elif not tested.identified:
        reasons.append(Open.NO_CANARY)
    elif not all(tested.identified):
        reasons.append(Open.MISSED)
    if tested.unread > MOST_UNREAD:
        reasons.append(Open.UNREAD)
    if tested.left_out > MOST_LEFT_OUT:
        reasons.append(Open.LEFT_OUT)
    return ("undecided", tuple(reasons)) if reasons else ("clean", ())
