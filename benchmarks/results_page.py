"""Write the tables of docs/results.md from the rows of the four tables.

    python benchmarks/results_page.py

Only finished rows of the present settings are shown.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from clipguard.lab.benchmark.goals import (
    REFERENCE_ROW,
    UNDEFENDED_ROW,
    Group,
    cell_text,
    groups,
    has_recall_goal,
    percent,
)
from clipguard.lab.benchmark.report import spread, summary, table, verdicts
from clipguard.lab.benchmark.results import Row
from marked_page import DOCS, NO_ROW, begin, current_rows, picture, written
from runners import RESULTS

PAGE = DOCS / "results.md"
BEGIN = begin(__file__)
DEFENCE = "clipguard"
TABLES = {"cifar10": "CIFAR-10", "gtsrb": "GTSRB", "cifar100": "CIFAR-100", "tiny": "Tiny-ImageNet"}
"""Titles of the folders under benchmarks/results, in the order of the page."""

CELL = (
    "attack",
    "victim: CA / ASR",
    "clean-trained: CA / ASR",
    "after clipguard: CA / ASR",
    "RA",
    "target recall, before and after",
    "TPR / FPR",
    "goals",
)


CONTROLS = {"retrain": "retrained without the flagged", "finetune": "fine-tuned with them"}
"""What a repair is held against, and in words."""


def section(results: Path) -> str:
    """Return the tables of all folders that have rows, in how many cells which goal is met first.

    The last table has the cells whose repair was held against training anew, or further.
    """
    tables = {folder: groups(current_rows(results / folder)) for folder in TABLES}
    tables = {folder: cells for folder, cells in tables.items() if cells}
    if not tables:
        return NO_ROW
    lines = summary([group for cells in tables.values() for group in cells if group.label == DEFENCE])
    for folder, cells in tables.items():
        title = TABLES[folder]
        lines += ["", f"### {title}", "", *table([list(CELL), *_lines(cells)])]
        lines += picture(results / folder / "results.png", f"Attack success and clean accuracy on {title}")
    if held := [line for folder, cells in tables.items() for line in _held_against(TABLES[folder], cells)]:
        head = ["data", "attack", "victim: CA / ASR", "clipguard", *CONTROLS.values()]
        lines += ["", "### Beside further training", "", *table([head, *held])]
    return "\n".join(lines)


def _by_cell(cells: list[Group]) -> list[dict[str, Group]]:
    """Return the groups of each cell by label."""
    by_cell: dict[tuple[object, ...], dict[str, Group]] = {}
    for group in cells:
        by_cell.setdefault(group.axes, {})[group.label] = group
    return list(by_cell.values())


def _held_against(title: str, cells: list[Group]) -> Iterator[list[str]]:
    """Yield a line for each cell with a control, over the seeds that have them all."""
    for cell in _by_cell(cells):
        labels = (UNDEFENDED_ROW, DEFENCE, *(label for label in CONTROLS if label in cell))
        if len(labels) == 2 or not all(label in cell for label in labels):
            continue
        seeds = set.intersection(*({row["seed"] for row in cell[label].rows} for label in labels))
        alike = {
            label: replace(cell[label], rows=[row for row in cell[label].rows if row["seed"] in seeds])
            for label in labels
        }
        attack = _name(cell[UNDEFENDED_ROW].rows[0])
        columns = (UNDEFENDED_ROW, DEFENCE, *CONTROLS)
        yield [title, attack, *(_pair(alike.get(label)) for label in columns)]


def _lines(cells: list[Group]) -> Iterator[list[str]]:
    """Yield a line for each cell that has a victim: what is not computed yet is a dash."""
    for cell in _by_cell(cells):
        victim, own = cell.get(UNDEFENDED_ROW), cell.get(DEFENCE)
        if victim is None:
            continue
        both = [group for group in (victim, own) if group is not None]
        yield [
            _name(victim.rows[0]),
            _pair(victim),
            _reference(cell.get(REFERENCE_ROW)),
            _pair(own),
            spread(own.values("robust_accuracy")) if own else "–",
            _recalls(both),
            _found(own),
            verdicts(own) if own else "–",
        ]


def _name(row: Row) -> str:
    """Return attack, rate, and what of it is not as published, in words."""
    options = json.loads(row["settings"])["cell"]["attack"]["options"] if row.get("settings") else {}
    words = [f"{name.replace('_', ' ')} {_value(value)}" for name, value in options.items()]
    return ", ".join([cell_text(row, ("rate", "variant")), *words])


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"of {len(value)} classes"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _recalls(both: list[Group]) -> str:
    """Return recall of the target class before and after, and of how many images where no goal holds."""
    recalls = [spread(values) for group in both if (values := group.values("target_recall"))]
    few = [row for row in both[-1].rows if row.get("paired_target_n") and not has_recall_goal(row)]
    remark = f" ({int(few[0]['paired_target_n'])} images, no goal)" if few else ""
    return " → ".join(recalls) + remark if recalls else "–"


def _reference(group: Group | None) -> str:
    if group is None:
        return "–"
    # All seeds of a cell are held against the same trainings: no spread over seeds.
    row = group.rows[0]
    pair, least_and_most = _pair(replace(group, rows=[row])), row.get("attack_success_range")
    return pair if not least_and_most else f"{pair} ({' to '.join(map(percent, least_and_most))})"


def _pair(group: Group | None) -> str:
    if group is None:
        return "–"
    success = group.values("attack_success")
    return spread(group.values("accuracy")) + (f" / {spread(success)}" if success else "")


def _found(own: Group | None) -> str:
    """Return which share of the poison is flagged, and of the rest; without poison how many are flagged."""
    if own is None:
        return "–"
    recall, wrong = own.values("detection_flagged_recall"), own.values("detection_false_positive_rate")
    if recall:
        return f"{fmean(recall):.3f} / {fmean(wrong):.4f}"
    return f"{fmean(own.values('notes_flagged')):.0f} flagged"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(), BEGIN, section(RESULTS)))
