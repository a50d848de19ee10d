"""The flagged samples by cause: one group for each finding, and one for what no finding explains."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Int64

from clipguard.outputs.findings import LISTED
from clipguard.runs.summary import Finding
from clipguard.types import Partition, State

OPEN_TRIGGER: Final = "pattern, cause open"
OPEN_LABEL: Final = "labels, cause open"
BY_REVIEW: Final = "dropped by a reviewer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Samples that are flagged for the same reason.

    Attributes:
        kind: of the finding, or `OPEN_TRIGGER` or `OPEN_LABEL` where no finding explains them; `BY_REVIEW`
            of what the scan does not flag.
        finding: place in the verdict's findings; None where none explains them.
        trigger: number of the reconstructed trigger that most of them share, 0 for none.
        rows: of the table, the most suspicious first.
    """

    kind: str
    finding: int | None
    trigger: int
    rows: Int64[np.ndarray, "m"]


def causes_of(
    findings: Sequence[Finding],
    partition: Partition,
    labels: Int64[np.ndarray, "n"],
    rank: Int64[np.ndarray, "n"],
) -> list[Cause]:
    """Return each flagged sample in exactly one group; findings keep their order and may be empty.

    A finding takes the flagged samples of its class. Samples of other classes join the first finding whose
    reconstructed trigger they share.
    """
    dropped = partition.has(State.DROPPED)
    flagged = np.flatnonzero(partition.flagged & ~dropped)
    flagged = flagged[np.argsort(rank[flagged], kind="stable")]
    trigger = partition.trigger[flagged] + 1
    by_label = partition.state[flagged] == State.LABEL
    owner = np.full(len(flagged), -1)
    for number, finding in enumerate(findings[:LISTED]):
        for_label = finding.kind == "label-only poison"
        of_class = (labels[flagged] == finding.label) & (owner < 0)
        several = sum(other.label == finding.label for other in findings[:LISTED]) > 1
        owner[of_class & (by_label == for_label) if several else of_class] = number
    shared: list[int] = []
    for number, finding in enumerate(findings[:LISTED]):
        shared.append(0 if finding.kind == "label-only poison" else _commonest(trigger[owner == number]))
        if shared[number] and shared[number] not in shared[:number]:
            owner[(owner < 0) & (trigger == shared[number])] = number
    groups = [
        Cause(kind=finding.kind, finding=number, trigger=shared[number], rows=flagged[owner == number])
        for number, finding in enumerate(findings[:LISTED])
    ]
    left = owner < 0
    groups += [
        Cause(
            kind=OPEN_TRIGGER,
            finding=None,
            trigger=int(one),
            rows=flagged[left & (trigger == one) & ~by_label],
        )
        for one in np.unique(trigger[left & ~by_label])
    ]
    if (left & by_label).any():
        groups.append(Cause(kind=OPEN_LABEL, finding=None, trigger=0, rows=flagged[left & by_label]))
    if dropped.any():
        rows = np.flatnonzero(dropped)
        by_rank = rows[np.argsort(rank[rows], kind="stable")]
        groups.append(Cause(kind=BY_REVIEW, finding=None, trigger=0, rows=by_rank))
    return groups


def _commonest(triggers: Int64[np.ndarray, "m"]) -> int:
    numbers, counts = np.unique(triggers[triggers > 0], return_counts=True)
    return int(numbers[counts.argmax()]) if len(numbers) else 0
