"""Pictures of results.parquet: rates by attack with their spread over seeds, and against what varies.

Needs matplotlib, which only the extra `bench` installs.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipguard.lab.benchmark.goals import (
    OTHER_MODEL,
    REFERENCE_ROW,
    STALE_SETTINGS,
    UNDEFENDED_ROW,
    Group,
    cell_text,
    varying_axes,
)

_STYLES: Final = (
    *(("x", "tab:red"), ("*", "tab:green"), ("o", "tab:blue"), ("s", "tab:cyan")),
    *(("+", "tab:gray"), ("D", "tab:orange"), ("v", "tab:purple")),
)
"""Mark and colour of the labels in the order of the rows: no defence, reference, then the defences."""
_WORDS: Final = {
    UNDEFENDED_ROW: "no defence",
    REFERENCE_ROW: "clean-trained reference",
    "finetune": "fine-tuned on all",
}
_PANELS: Final = {"attack_success": "attack success, %", "accuracy": "clean accuracy, %"}

Place = Callable[[Group], float | None]
"""Where a group lies along the horizontal axis; None leaves it out."""


def write_pictures(groups: list[Group], run: Path) -> list[Path]:
    """Return the pictures drawn into `run`: by cell, and against poison rate and guide if they vary."""
    drawn = {"results.png": _by_cell(groups)} if groups else {}
    if rates := _varying(groups, "rate"):
        drawn["results-rate.png"] = _against(rates, _poison_rate, "poison rate, %")
    if guided := _varying(groups, "guide", "degrade"):
        drawn["results-guide.png"] = _against(guided, _guide_accuracy(guided), "guide accuracy, %")
    for name, figure in drawn.items():
        figure.tight_layout(rect=(0, 0, 1, 0.94))
        figure.savefig(run / name, dpi=110)
    return [run / name for name in drawn]


def _varying(groups: list[Group], *names: str) -> list[Group]:
    """Return the groups of the attacks for which one of these axes takes more than one value."""
    values: dict[str, set[tuple[Any, ...]]] = {}
    for group in groups:
        row = group.rows[0]
        values.setdefault(row["attack"], set()).add(tuple(row[name] for name in names))
    return [group for group in groups if len(values[group.rows[0]["attack"]]) > 1]


def _poison_rate(group: Group) -> float:
    return 100 * float(group.rows[0]["rate"])


def _guide_accuracy(groups: list[Group]) -> Place:
    """Return a group's place by its guide's measured accuracy, which only defended rows carry themselves."""
    accuracies: dict[tuple[Any, ...], list[float]] = {}
    for group in groups:
        accuracies.setdefault(group.axes, []).extend(group.values("guide_accuracy"))
    return lambda group: 100 * float(np.mean(accuracies[group.axes])) if accuracies[group.axes] else None


def _by_cell(groups: list[Group]) -> Figure:
    """Return one column a cell, one mark a row."""
    columns = {group.axes: group.rows[0] for group in groups}
    labels, cells = _labels(groups), list(columns)
    axes = varying_axes(list(columns.values()))
    figure = Figure(figsize=(max(6.0, 2 + 0.9 * len(columns)), 7))

    def place(group: Group) -> float:
        shift = labels.index(group.label) / max(1, len(labels) - 1) - 0.5
        return cells.index(group.axes) + 0.6 * shift

    for number, name in enumerate(_PANELS):
        panel = _panel(figure, (2, 1, number + 1), name)
        for label in labels:
            alike = [group for group in groups if group.label == label]
            _marks(panel, name, alike, place, _style(label, labels) | {"linestyle": "none"})
        panel.set_xlim(-0.5, len(columns) - 0.5)
        texts = [cell_text(row, axes) for row in columns.values()]
        panel.set_xticks(range(len(columns)), texts, rotation=30, ha="right", fontsize=8)
    # Above the panels, where no mark can lie under it.
    handles, words = figure.axes[1].get_legend_handles_labels()
    figure.legend(handles, words, loc="upper center", fontsize=7, ncols=3, bbox_to_anchor=(0.5, 1.0))
    return figure


def _against(groups: list[Group], place: Place, horizontal: str) -> Figure:
    """Return ASR and CA over a number, one line a row and attack."""
    labels = _labels(groups)
    figure = Figure(figsize=(11, 4.5))
    for number, name in enumerate(_PANELS):
        panel = _panel(figure, (1, 2, number + 1), name)
        for label, attack in dict.fromkeys((group.label, group.rows[0]["attack"]) for group in groups):
            alike = [g for g in groups if g.label == label and g.rows[0]["attack"] == attack]
            style = _style(label, labels)
            _marks(panel, name, alike, place, style | {"label": f"{style['label']}, {attack}"})
        panel.set_xlabel(horizontal)
    figure.axes[1].legend(fontsize=6)
    return figure


def _labels(groups: Iterable[Group]) -> list[str]:
    return list(dict.fromkeys(group.label for group in groups))


def _style(label: str, labels: list[str]) -> dict[str, Any]:
    """Return how a label is drawn; a stale row or one of another model is hollow."""
    current = [name.removesuffix(OTHER_MODEL).removesuffix(STALE_SETTINGS) for name in labels]
    kind = current[labels.index(label)]
    mark, colour = _STYLES[list(dict.fromkeys(current)).index(kind) % len(_STYLES)]
    filling = "full" if label == kind else "none"
    return {"label": _WORDS.get(label, label), "marker": mark, "color": colour, "fillstyle": filling}


def _panel(figure: Figure, position: tuple[int, int, int], name: str) -> Axes:
    panel: Axes = figure.add_subplot(*position)
    panel.set_ylabel(_PANELS[name])
    panel.grid(alpha=0.3)
    if name == "attack_success":
        # Linear below 1 %, so that zero has a place; the goals lie there.
        panel.set_yscale("symlog", linthresh=1)
        panel.set_ylim(-0.2, 130)
        panel.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    return panel


def _marks(panel: Axes, name: str, groups: list[Group], place: Place, style: dict[str, Any]) -> None:
    """Draw the mean of each group's values, with a bar from the least to the most."""
    points = [
        (x, np.mean(values), min(values), max(values))
        for group in groups
        if (values := group.values(name)) and (x := place(group)) is not None
    ]
    if points:
        x, mean, least, most = np.array(sorted(points)).T * [[1], [100], [100], [100]]
        # Rounding may leave the mean a hair outside the extremes.
        bars = np.maximum(0, [mean - least, most - mean])
        panel.errorbar(x, mean, yerr=bars, markersize=6, linewidth=1, capsize=2, **style)
