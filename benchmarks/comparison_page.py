"""Write the measured tables of docs/comparison.md: detectors, rivals by budget, clean samples of two origins.

Detectors are compared twice: by the order of all samples, and by what each of them would drop.

    python benchmarks/comparison_page.py

Only finished rows of the present settings are shown. Rows are those of `detectors.toml`, `rivals.toml` and
`split-clean.toml`.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from clipguard.lab.benchmark.goals import REFERENCE_ROW, UNDEFENDED_ROW
from clipguard.lab.benchmark.report import table
from clipguard.lab.benchmark.results import Row, total_seconds
from marked_page import DOCS, NO_ROW, begin, current_rows, written
from runners import RESULTS

PAGE = DOCS / "comparison.md"
BEGIN = begin(__file__)
BUDGETS = (1, 3, 10)
"""Of `rivals.toml`, in clipguard's own seconds."""
ORIGINS = ("split", "given")
"""Of `split-clean.toml`: clean samples from clipguard's partition, and samples known to be clean."""

T = TypeVar("T")
Rows = dict[str, dict[str, Row]]
"""Rows by defence, then by attack."""


def section(results: Path) -> str:
    """Return the tables; each says so where it has no row."""
    found = _finished(results / "detectors")
    parts = {
        "Detectors": detectors(found),
        "Detectors by their own decision": decisions(found),
        "Defences by budget": defences(_finished(results / "rivals")),
        "Clean samples from the scan and real ones": origins(_finished(results / "split-clean")),
    }
    return "\n".join(
        line for title, lines in parts.items() for line in (f"### {title}", "", *lines, "")
    ).rstrip()


def detectors(rows: list[Row]) -> list[str]:
    """Return the AUROC of each detector by attack, and its means; only attacks that took count.

    The line of clipguard is its scan's.
    """
    by_label = _by_label(row for row in _took(rows) if row.get("detection_auroc_suspicion") is not None)
    attacks = _attacks(by_label)
    lines = []
    for label, cells in by_label.items():
        areas = [row["detection_auroc_suspicion"] for row in cells.values()]
        found = [row["detection_found_at_1_percent"] for row in cells.values()]
        # A mean over fewer attacks cannot be held against the others.
        means = (
            [f"{fmean(areas):.3f}", f"{100 * fmean(found):.1f}"] if len(cells) == len(attacks) else ["–"] * 2
        )
        lines.append([label, *means, *(_cell(cells, attack, _area) for attack in attacks)])
    lines.sort(key=lambda line: (line[1] != "–", line[1]), reverse=True)
    head = ["detector", "mean AUROC", "mean TPR at 1 % FPR, %", *attacks]
    return table([head, *lines]) if lines else [NO_ROW]


def decisions(rows: list[Row]) -> list[str]:
    """Return the share of the poison and of the other samples that each detector would drop, by attack.

    A detector that does not decide has no line.
    """
    by_label = _by_label(row for row in _took(rows) if row.get("detection_flagged_recall") is not None)
    attacks = _attacks(by_label)
    lines = []
    for label, cells in by_label.items():
        recall, wrong = (
            [row[f"detection_{name}"] for row in cells.values()]
            for name in ("flagged_recall", "false_positive_rate")
        )
        whole = len(cells) == len(attacks)
        means = f"{100 * fmean(recall):.1f} / {100 * fmean(wrong):.2f}" if whole else "–"
        lines.append([label, means, *(_cell(cells, attack, _dropped) for attack in attacks)])
    return table([["detector: TPR / FPR, %", "mean", *attacks], *lines]) if lines else [NO_ROW]


def defences(rows: list[Row]) -> list[str]:
    """Return CA and ASR of each defence by attack, a table for each budget; only attacks that took count."""
    took = [row for row in _took(rows) if row["accuracy"] is not None]
    if not took:
        return [NO_ROW]
    lines: list[str] = []
    for budget in BUDGETS:
        times = "clipguard's own seconds" if budget == 1 else f"{budget} times clipguard's own seconds"
        lines += [f"**{times[0].upper()}{times[1:]}**", "", *_rates(_within(took, budget)), ""]
    return lines[:-1]


def origins(rows: list[Row]) -> list[str]:
    """Return CA and ASR of each defence with clean samples of both origins."""
    took = [row for row in _took(rows) if _setting(row, "origin") in ORIGINS]
    sides = {
        side: _by_label((row for row in took if _setting(row, "origin") == side), f" {side}")
        for side in ORIGINS
    }
    attacks = _attacks({label: cells for side in sides.values() for label, cells in side.items()})
    labels = dict.fromkeys(label for side in sides.values() for label in side)
    shown = [
        [label, *(_cell(sides[side].get(label, {}), attack, _pair) for attack in attacks for side in ORIGINS)]
        for label in labels
    ]
    words = {"split": "clipguard's clean part", "given": "clean slice"}
    head = ["defence: CA / ASR", *(f"{attack}, {words[side]}" for attack in attacks for side in ORIGINS)]
    return table([head, *shown]) if shown else [NO_ROW]


def _finished(folder: Path) -> list[Row]:
    rows = [row for row in current_rows(folder) if row["error"] is None]
    cells = Counter((row["row"], row["attack"]) for row in rows)
    if twice := [cell for cell, count in cells.items() if count > 1]:
        raise ValueError(
            f"{folder.name} has several rows of {', '.join(twice[0])}: its tables take one of each"
        )
    return rows


def _took(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["attack_succeeded"] and row["row"] != REFERENCE_ROW]


def _by_label(rows: Iterable[Row], suffix: str = "") -> Rows:
    found: Rows = {}
    for row in rows:
        found.setdefault(row["row"].removesuffix(suffix), {})[row["attack"]] = row
    return found


def _within(rows: list[Row], budget: int) -> Rows:
    """Return the rows of a budget; a schedule that a smaller one has paid for whole is the same in this."""
    found: Rows = {}
    for row in sorted(rows, key=lambda row: _setting(row, "budget") or 0):
        own = _setting(row, "budget")
        if own in (None, budget) or (own < budget and row.get("notes_schedule_share") == 1):
            found.setdefault(_unbudgeted(row), {})[row["attack"]] = row
    return {
        label: found[label] for label in dict.fromkeys(_unbudgeted(row) for row in rows) if label in found
    }


def _attacks(rows: Rows) -> list[str]:
    return list(dict.fromkeys(attack for cells in rows.values() for attack in cells))


def _unbudgeted(row: Row) -> str:
    budget = _setting(row, "budget")
    # A budget is a float in the settings, whatever the file says.
    return str(row["row"] if budget is None else row["row"].removesuffix(f" {budget:g}x"))


def _setting(row: Row, name: str) -> Any:
    settings = json.loads(row["settings"])["row"]["settings"]
    return settings.get(name)


def _rates(rows: Rows) -> list[str]:
    attacks = _attacks({label: cells for label, cells in rows.items() if label != UNDEFENDED_ROW})
    rows = {
        label: {attack: row for attack, row in cells.items() if attack in attacks}
        for label, cells in rows.items()
    }
    head = [
        "defence",
        "mean CA",
        "mean ASR",
        "mean RA",
        "mean target recall",
        "mean seconds",
        "most memory, MB",
    ]
    lines = []
    for label, cells in rows.items():
        whole = len(cells) == len(attacks)
        means = [
            _mean(cells, name) for name in ("accuracy", "attack_success", "robust_accuracy", "target_recall")
        ]
        costs = [row for row in cells.values() if label != UNDEFENDED_ROW]
        seconds = [value for row in costs if (value := total_seconds(row)) is not None]
        memory = [row["peak_memory_mb"] for row in costs if row.get("peak_memory_mb") is not None]
        # A mean over fewer attacks cannot be held against the others.
        figures = [*means, f"{fmean(seconds):.0f}" if seconds else "–"] if whole else ["–"] * 5
        lines.append(
            [
                "no defence" if label == UNDEFENDED_ROW else label,
                *figures,
                f"{max(memory):.0f}" if memory else "–",
                *(_cell(cells, one, _pair) for one in attacks),
            ]
        )
    return table([[*head, *(f"{attack}: CA / ASR" for attack in attacks)], *lines])


def _mean(cells: dict[str, Row], name: str) -> str:
    values = [row[name] for row in cells.values() if row[name] is not None]
    return f"{100 * fmean(values):.1f}" if values else "–"


def _area(row: Row) -> str:
    return f"{row['detection_auroc_suspicion']:.3f}"


def _dropped(row: Row) -> str:
    recall, wrong = row["detection_flagged_recall"], row["detection_false_positive_rate"]
    return f"{100 * recall:.1f} / {100 * wrong:.2f}"


def _pair(row: Row) -> str:
    return f"{100 * row['accuracy']:.1f} / {100 * row['attack_success']:.1f}"


def _cell(cells: dict[str, T], attack: str, text: Callable[[T], str]) -> str:
    return text(cells[attack]) if attack in cells else "–"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(), BEGIN, section(RESULTS)))
