"""Whether a defended row meets the goals of its cell, and by how much it misses."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from clipguard.lab.benchmark.results import Row

FLOOR: Final = 0.01
MARGIN: Final = 0.005
"""Attack success may be this much above the clean-trained reference's, whose errors hit the target, too."""
LOSS: Final = 0.003
"""Of clean accuracy, in the mean over cells."""
RECALL_LOSS: Final = 0.02
RECALL_IMAGES: Final = 100
"""Test images of the target class below which its recall is no goal: one image would be a point or more."""
CONFIDENCE: Final = 0.95
_ROUNDING: Final = 1e-9

UNDEFENDED_ROW: Final = "none"
"""Label of the victim as it is."""
REFERENCE_ROW: Final = "reference"
"""Label of the clean-trained reference: the same recipe without the poison."""
_WITHOUT_GOAL: Final = (UNDEFENDED_ROW, REFERENCE_ROW, "finetune")

GOALS: Final = (
    f"ASR <= max({FLOOR:.0%}, reference + {100 * MARGIN:g} points) for every trigger; clean accuracy not "
    f"significantly below the undefended model's (McNemar's exact test, {CONFIDENCE:.0%}); recall of the "
    f"target class not significantly more than {100 * RECALL_LOSS:g} points below (paired interval, "
    f"{CONFIDENCE:.0%}, from {RECALL_IMAGES} test images of the class on). Where the attack did not succeed "
    "(ASR < 80 %), no defence is scored"
)

STALE_SETTINGS: Final = " (stale settings)"
"""Follows the label of a row whose key is not that of the present settings and code."""

OTHER_MODEL: Final = " (other model)"
"""Follows the label of a row of another poisoned set or victim, for instance from another machine."""

ATTACK_FAILED: Final = "attack did not succeed: not scored"
_ALONE: Final = "undefended model or reference missing: not scored"
_OUTDATED: Final = "of an older version, not scored: run the benchmark again"
UNSCORED: Final = ("", ATTACK_FAILED, _ALONE, _OUTDATED)
"""What `goal` says of a row that neither meets nor misses anything."""

AXES: Final = ("data", "attack", "rate", "guide", "degrade", "net", "epochs", "variant")
"""What tells cells apart, beside their seed; `variant` holds what none of the others says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The rows of one label over all seeds of otherwise equal cells, and what each of them misses."""

    axes: tuple[Any, ...]
    label: str
    rows: list[Row]
    goals: list[str]

    def values(self, name: str) -> list[float]:
        """Return a figure of every seed that has it."""
        return [row[name] for row in self.rows if row.get(name) is not None]


def groups(rows: list[Row]) -> list[Group]:
    """Return the groups in the order of the rows, without those that failed."""
    by_label: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    cells: dict[tuple[Any, ...], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row["error"] is None:
            axes = _axes(row)
            by_label[(axes, row["row"])].append(row)
            cells[(axes, row["seed"])][row["row"]] = row
    return [
        Group(
            axes=axes, label=label, rows=alike, goals=[goal(row, cells[(axes, row["seed"])]) for row in alike]
        )
        for (axes, label), alike in by_label.items()
    ]


def _axes(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in AXES)


def goal(row: Row, cell: dict[str, Row]) -> str:
    """Return `met`, by how much the row misses, or why it is not scored; "" for a row without a goal.

    A row of another victim has none here: it cannot be held against this one.
    """
    # A detector repairs nothing.
    if row["defense"] in _WITHOUT_GOAL or row["accuracy"] is None or row["row"].endswith(OTHER_MODEL):
        return ""
    before, reference = cell.get(UNDEFENDED_ROW), cell.get(REFERENCE_ROW)
    if before is None or reference is None:
        return _ALONE
    if before["attack_successes"] and not row["attack_succeeded"]:
        return ATTACK_FAILED
    if row.get("paired_n") is None:
        return _OUTDATED
    return "; ".join([*_success_misses(row, reference), *_loss_misses(row)]) or "met"


def _success_misses(row: Row, reference: Row) -> Iterator[str]:
    for after, clean in zip(row["attack_successes"], reference["attack_successes"], strict=True):
        bound = max(FLOOR, clean + MARGIN)
        if after > bound + _ROUNDING:
            yield f"ASR {percent(after)} > {percent(bound)} (+{percent(after - bound)})"


def _loss_misses(row: Row) -> Iterator[str]:
    lost, gained = (int(row[f"paired_{name}"]) for name in ("lost", "gained"))
    chance = chance_of_loss(lost, gained)
    if chance < 1 - CONFIDENCE:
        yield f"CA −{percent((lost - gained) / row['paired_n'])} (p = {chance:.2g})"
    n, lost, gained = (int(row[f"paired_target_{name}"]) for name in ("n", "lost", "gained"))
    if has_recall_goal(row) and (least := least_loss(lost, gained, n)) > RECALL_LOSS:
        words = f"at least −{percent(least)}, allowed −{percent(RECALL_LOSS)}"
        yield f"target recall −{percent((lost - gained) / n)} ({words})"


def has_recall_goal(row: Row) -> bool:
    """Return whether there are test images enough of the target class for its recall to be judged."""
    n = row.get("paired_target_n")
    return n is not None and int(n) >= RECALL_IMAGES


def chance_of_loss(lost: int, gained: int) -> float:
    """Return the chance of so many lost images, or more, if losing and gaining one were as likely.

    McNemar's test, exact and one-sided, over the images that two models judge differently.
    """
    from scipy.stats import binom

    return float(binom.sf(lost - 1, lost + gained, 0.5))


def least_loss(lost: int, gained: int, n: int) -> float:
    """Return the lower end of a 95 % interval (one-sided) of the loss of a paired rate, as a fraction.

    The interval of Agresti and Min (Statistics in Medicine 24, 2005): Wald's, with a half added to each of
    the four counts.
    """
    from scipy.stats import norm

    size, more, fewer = n + 2, lost + 0.5, gained + 0.5
    loss = (more - fewer) / size
    error = ((more + fewer) / size - loss**2) ** 0.5 / size**0.5
    return float(loss - norm.ppf(CONFIDENCE) * error)


def percent(rate: float) -> str:
    """Return a rate as per cent with two decimals."""
    return f"{100 * rate:.2f}"


def varying_axes(rows: list[Row]) -> list[str]:
    """Return those of `AXES` that take more than one value."""
    return [name for name in AXES if len({row[name] for row in rows}) > 1]


def cell_text(row: Row, axes: Sequence[str]) -> str:
    """Return a row's attack and its values of some of `AXES` in words; without an attack there is no rate."""
    names = [name for name in AXES if name == "attack" or name in axes]
    untouched = row["attack"] == "none"
    words = (axis_word(name, row[name]) for name in names if not (untouched and name == "rate"))
    return ", ".join(word for word in words if word)


def axis_word(axis: str, value: Any) -> str:
    """Return a value of one of `AXES` in words; "" where it says nothing."""
    if axis == "rate":
        return f"{100 * value:g} %"
    if axis == "epochs":
        return f"{value} epochs"
    if axis == "degrade":
        return f"guide noise {value:g}" if value else ""
    return str(value)
