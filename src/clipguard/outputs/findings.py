"""What a verdict rests on, in words: findings as the rows of one table, power and limits as sentences.

No sentence is so long that the page would cut it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from clipguard.outputs.text import percent
from clipguard.runs.summary import CONFIDENCE, Finding, Power

LISTED: Final = 20
"""How many findings, class names or limits are listed."""

NO_CANARY: Final = "No class is large enough for canaries (known triggers): power could not be measured."

NO_POWER: Final = "Power was not measured, because no canaries were put into a copy of this data."

NOT_ASSESSABLE: Final = "Not assessable, since the guide does not tell these classes from others"

_MEANINGS: Final = {
    "trigger": "its flagged samples share a pattern that alone carries the label",
    "label-only poison": "it was given labels that belong to {source}",
    "shortcut": "its flagged samples share a pattern, and the guide does not contradict their labels: a "
    "watermark, say, or an attack that changes no label",
}


class FindingRow(NamedTuple):
    """A finding as both tables show it; `meaning` and `cause` are clauses, the latter empty if not tested."""

    class_name: str
    kind: str
    flagged: str
    at_least: str
    strength: str
    meaning: str
    cause: str


def finding_rows(findings: Sequence[Finding]) -> list[FindingRow]:
    """Return a row for each of the first `LISTED` findings."""
    return [_row(finding) for finding in findings[:LISTED]]


def _row(finding: Finding) -> FindingRow:
    source = "other classes" if finding.from_class is None else f"class {finding.from_class}"
    cause = ""
    if finding.believed_with is not None and finding.believed_without is not None:
        cause = (
            f"a model that learned from some of them believes the label of the others to "
            f"{percent(finding.believed_with)}, one that met none to {percent(finding.believed_without)}"
        )
    return FindingRow(
        class_name=finding.class_name,
        kind=finding.kind,
        flagged=f"{finding.flagged:,}",
        at_least="–" if finding.at_least is None else f"{finding.at_least:,}",
        strength="–" if finding.strength is None else f"{finding.strength:.1f}",
        meaning=_MEANINGS[finding.kind].format(source=source),
        cause=cause,
    )


def power_words(power: Power | None) -> list[str]:
    """Return what the canaries show, in a few sentences."""
    if power is None:
        return [NO_POWER]
    if not power.canaries:
        return [NO_CANARY]
    copies = "a copy" if power.copies == 1 else f"{power.copies:,} copies"
    sentences = [
        f"{power.identified:,} of {len(power.canaries):,} canaries (known triggers in {copies} of this data) "
        "were found."
    ]
    floors = [f"{family} {count:,}" for family, count in power.floors.items()]
    missed = sorted({canary.family for canary in power.canaries} - power.floors.keys())
    if floors:
        bound = math.floor(100 * power.lower_bound)
        sentences.append(
            "A trigger of these kinds with as many samples or more is found with a probability of at least "
            f"{bound} % (at {100 * CONFIDENCE:.0f} % confidence): {', '.join(floors)}."
        )
    if missed:
        sentences.append(f"None was found of {', '.join(missed)}.")
    return sentences


def strength_words(finding: Finding) -> str:
    """Return how much else could explain the class, in sentences; empty where it was not computed."""
    words = []
    if finding.deep_share is not None:
        words.append(f"Deep inside the class they come from, {percent(finding.deep_share)} carry this label.")
    if finding.strength is not None:
        words.append(
            f"A harmless cause would have to raise the odds of being flagged {finding.strength:.1f}-fold "
            "to explain this class."
        )
    if finding.p_value is not None:
        chance = "under 0.001" if finding.p_value < 0.001 else f"{finding.p_value:.3f}"
        words.append(f"By chance alone, a class stands out like this with a probability of {chance}.")
    return " ".join(words)


def detection_words(detection: Mapping[str, Any] | None) -> list[str]:
    """Return how the scan compares with the ground truth, in sentences; what is no number is left out."""
    known = {name: value for name, value in (detection or {}).items() if isinstance(value, int | float)}
    sentences = []
    if {"poisoned", "flagged", "flagged_recall"} <= known.keys():
        sentences.append(
            f"{known['poisoned']:,} samples are poisoned, {known['flagged']:,} are flagged, and "
            f"{percent(known['flagged_recall'])} of the poisoned ones are among those."
        )
    if "flagged_precision" in known:
        sentences.append(f"{percent(known['flagged_precision'])} of the flagged samples are poisoned.")
    if "poison_in_clean" in known:
        sentences.append(f"{known['poison_in_clean']:,} poisoned samples are trusted.")
    if "auroc_suspicion" in known:
        sentences.append(
            f"A poisoned sample has a higher score than another one in {percent(known['auroc_suspicion'])} "
            "of all pairs (AUROC)."
        )
    return sentences
