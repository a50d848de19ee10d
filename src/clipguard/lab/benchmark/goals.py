"""Whether a defended row meets the goals of its cell, and by how much it misses."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

Row = dict[str, Any]

FLOOR: Final = 0.01
MARGIN: Final = 0.005
"""Attack success may be this much above the oracle's: a clean model that errs hits the target, too."""
LOSS: Final = 0.003
RECALL_LOSS: Final = 0.02
_ROUNDING: Final = 1e-9
_WITHOUT_GOAL: Final = ("none", "oracle", "finetune")

GOALS: Final = (
    f"ASR <= max({FLOOR:.0%}, oracle + {100 * MARGIN:g} points) for every trigger, clean accuracy at most "
    f"{100 * LOSS:g} points below the undefended model's, recall of the target class at most "
    f"{100 * RECALL_LOSS:g} points below; where the attack did not take (ASR < 80 %), nobody is credited"
)

EARLIER: Final = " (earlier settings)"
"""Follows the label of a row that was computed with settings that are the file's no more."""

APART: Final = " (another victim)"
"""Follows the label of a row that another machine computed from another poisoned set or victim."""

NOT_PLANTED: Final = "not planted: no credit"

AXES: Final = ("data", "attack", "rate", "guide", "degrade", "net", "epochs", "variant")
"""What tells cells apart, beside their seed; `variant` holds what none of the others says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The rows of one label over all seeds of otherwise equal cells."""

    axes: tuple[Any, ...]
    label: str
    rows: tuple[Row, ...]
    goals: tuple[str, ...]

    def values(self, name: str) -> list[float]:
        """Return a figure of every seed that has it."""
        return [row[name] for row in self.rows if row.get(name) is not None]


def groups(rows: list[Row]) -> list[Group]:
    """Return the groups in the order of the rows, without those that failed."""
    found: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    cells: dict[tuple[Any, ...], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row["error"] is None:
            axes = tuple(row[name] for name in AXES)
            found[(*axes, row["row"])].append(row)
            cells[(*axes, row["seed"])][row["row"]] = row
    return [
        Group(
            axes=key[:-1],
            label=key[-1],
            rows=tuple(of_label),
            goals=tuple(goal(row, cells[(*key[:-1], row["seed"])]) for row in of_label),
        )
        for key, of_label in found.items()
    ]


def goal(row: Row, cell: dict[str, Row]) -> str:
    """Return `met`, by how much the row misses, or why none can be told; nothing without a goal.

    A row of another victim has none here: it cannot be held against this one.
    """
    if row["defense"] in _WITHOUT_GOAL or row["row"].endswith(APART):
        return ""
    before, oracle = cell.get("none"), cell.get("oracle")
    if before is None or oracle is None:
        return "undefended model or oracle missing"
    if before["attack_successes"] and not row["planted"]:
        return NOT_PLANTED
    return "; ".join([*_success_misses(row, oracle), *_loss_misses(row, before)]) or "met"


def _success_misses(row: Row, oracle: Row) -> Iterator[str]:
    for after, clean in zip(row["attack_successes"], oracle["attack_successes"], strict=True):
        bound = max(FLOOR, clean + MARGIN)
        if after > bound + _ROUNDING:
            yield f"ASR {percent(after)} > {percent(bound)} (+{percent(after - bound)})"


def _loss_misses(row: Row, before: Row) -> Iterator[str]:
    for name, allowed, word in (("accuracy", LOSS, "CA"), ("target_recall", RECALL_LOSS, "target recall")):
        if before[name] is not None and row[name] is not None:
            lost = before[name] - row[name]
            if lost > allowed + _ROUNDING:
                yield f"{word} −{percent(lost)} (allowed −{percent(allowed)})"


def percent(rate: float) -> str:
    """Return a rate as per cent with two decimals."""
    return f"{100 * rate:.2f}"
