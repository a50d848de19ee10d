"""Pictures of results.parquet: rates by attack with their spread over seeds, by what varies, and by time.

Needs matplotlib, which only the extra `bench` installs.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from clipguard.lab.benchmark.goals import (
    OTHER_MODEL,
    REFERENCE_ROW,
    STALE_SETTINGS,
    UNDEFENDED_ROW,
    Group,
    cell_text,
    varying_axes,
)
from clipguard.lab.benchmark.results import Row, total_seconds
from clipguard.runs.files import replacing

_STYLES: Final = (
    *(("x", "tab:red"), ("*", "tab:green"), ("o", "tab:blue"), ("s", "tab:cyan")),
    *(("+", "tab:gray"), ("D", "tab:orange"), ("v", "tab:purple")),
)
"""Mark and colour of the labels in the order of the rows: no defence, reference, then the defences."""
_MARKS: Final = ("o", "s", "D")
"""Of defences over time: ten colours each."""
_WORDS: Final = {
    UNDEFENDED_ROW: "no defence",
    REFERENCE_ROW: "clean-trained reference",
    "finetune": "fine-tuned on all",
}
_PANELS: Final = {"attack_success": "attack success, %", "accuracy": "clean accuracy, %"}

_COMPARED: Final = 4
"""Defences from which on their time is drawn."""

Place = Callable[[Group], float | None]
"""Where a group lies along the horizontal axis; None leaves it out."""
Series = list[tuple[dict[str, Any], list[Group]]]
"""What belongs together, with the style that it is drawn in."""


def write_pictures(groups: list[Group], run: Path) -> list[Path]:
    """Return the pictures drawn into `run`: by cell, poison rate and guide if they vary, and time."""
    drawn = {"results.png": _by_cell(groups)} if groups else {}
    if rates := _varying(groups, "rate"):
        drawn["results-rate.png"] = _against(rates, _poison_rate, "poison rate, %")
    if guided := _varying(groups, "guide", "degrade"):
        drawn["results-guide.png"] = _against(guided, _guide_accuracy(guided), "guide accuracy, %")
    timed = _timed(groups)
    if len({rows[0]["defense"] for rows in timed.values()}) >= _COMPARED:
        drawn["results-time.png"] = _by_time(timed, _clean_success(groups))
    for name, figure in drawn.items():
        figure.tight_layout(rect=(0, 0, 1, 0.94))
        with replacing(run / name) as part:
            figure.savefig(part, dpi=110, format="png")
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
    labels, cells = list(dict.fromkeys(group.label for group in groups)), list(columns)

    def place(group: Group) -> float:
        shift = labels.index(group.label) / max(1, len(labels) - 1) - 0.5
        return cells.index(group.axes) + 0.6 * shift

    figure = Figure(figsize=(max(6.0, 2 + 0.9 * len(columns)), 7))
    series = {label: [group for group in groups if group.label == label] for label in labels}
    styles = {label: _style(label, labels) | {"linestyle": "none"} for label in labels}
    varying = varying_axes(list(columns.values()))
    texts = [cell_text(row, varying) for row in columns.values()]
    for panel in _panels(figure, (2, 1), [(styles[label], alike) for label, alike in series.items()], place):
        panel.set_xlim(-0.5, len(columns) - 0.5)
        panel.set_xticks(range(len(columns)), texts, rotation=30, ha="right", fontsize=8)
    # Above the panels, where no mark can lie under it.
    handles, words = figure.axes[1].get_legend_handles_labels()
    figure.legend(handles, words, loc="upper center", fontsize=7, ncols=3, bbox_to_anchor=(0.5, 1.0))
    return figure


def _against(groups: list[Group], place: Place, horizontal: str) -> Figure:
    """Return ASR and CA over a number, one line a row and attack."""
    labels = list(dict.fromkeys(group.label for group in groups))
    lines: dict[tuple[str, str], list[Group]] = defaultdict(list)
    for group in groups:
        lines[(group.label, group.rows[0]["attack"])].append(group)
    series = []
    for (label, attack), alike in lines.items():
        style = _style(label, labels)
        series.append((style | {"label": f"{style['label']}, {attack}"}, alike))
    figure = Figure(figsize=(11, 4.5))
    for panel in _panels(figure, (1, 2), series, place):
        panel.set_xlabel(horizontal)
    figure.axes[1].legend(fontsize=6)
    return figure


def _timed(groups: list[Group]) -> dict[str, list[Row]]:
    """Return the rows of each defence whose seconds are known, where the attack succeeded."""
    ends = (OTHER_MODEL, STALE_SETTINGS)
    timed: dict[str, list[Row]] = defaultdict(list)
    for group in groups:
        if group.label not in (UNDEFENDED_ROW, REFERENCE_ROW) and not group.label.endswith(ends):
            for row in _succeeded(group):
                if total_seconds(row):
                    timed[group.label].append(row)
    return timed


def _succeeded(group: Group) -> list[Row]:
    return [row for row in group.rows if row["attack_succeeded"] and row["attack_success"] is not None]


def _clean_success(groups: list[Group]) -> float:
    """Return the mean attack success of the clean-trained references where the attack succeeded."""
    clean = [row for group in groups if group.label == REFERENCE_ROW for row in _succeeded(group)]
    return float(np.mean([row["attack_success"] for row in clean])) if clean else 0.0


def _by_time(timed: dict[str, list[Row]], reference: float) -> Figure:
    """Return attack success over seconds: a mark a label, a line through the budgets of a defence.

    Both are means over the rows that a label has; the legend says how many those are.
    """
    defences: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
    for rows in timed.values():
        seconds = float(np.mean([total_seconds(row) or 0.0 for row in rows]))
        success = 100 * float(np.mean([row["attack_success"] for row in rows]))
        defences[rows[0]["defense"]].append((seconds, success, len(rows)))
    figure = Figure(figsize=(8, 5))
    panel: Axes = figure.add_subplot()
    for number, (name, points) in enumerate(defences.items()):
        x, y, counts = zip(*sorted(points), strict=True)
        counted = " to ".join(map(str, sorted({min(counts), max(counts)})))
        mark, colour = _MARKS[number // 10 % len(_MARKS)], f"C{number % 10}"
        size = 11 if name == "clipguard" else 6
        words = f"{name} (n = {counted})"
        panel.plot(x, y, marker=mark, color=colour, linewidth=1, markersize=size, label=words)
    panel.axhline(100 * reference, color="gray", linestyle="--", linewidth=1, label=_WORDS[REFERENCE_ROW])
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    panel.xaxis.set_minor_formatter("{x:g}")
    panel.set_xlabel("seconds of a defence, scan and guide's pass included where it has them")
    panel.set_ylabel("attack success, %, mean over cells and seeds")
    panel.grid(alpha=0.3)
    _percent_axis(panel)
    panel.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _percent_axis(panel: Axes) -> None:
    """Scale an axis of attack success: linear below 1 %, so that zero has a place; the goals lie there."""
    panel.set_yscale("symlog", linthresh=1)
    panel.set_ylim(-0.2, 130)
    panel.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])


def _style(label: str, labels: list[str]) -> dict[str, Any]:
    """Return how a label is drawn; a stale row or one of another model is hollow."""
    current = [name.removesuffix(OTHER_MODEL).removesuffix(STALE_SETTINGS) for name in labels]
    kind = current[labels.index(label)]
    mark, colour = _STYLES[list(dict.fromkeys(current)).index(kind) % len(_STYLES)]
    filling = "full" if label == kind else "none"
    return {"label": _WORDS.get(label, label), "marker": mark, "color": colour, "fillstyle": filling}


def _panels(figure: Figure, shape: tuple[int, int], series: Series, place: Place) -> Iterator[Axes]:
    """Yield the panels: of each group the mean over seeds, with a bar from the least to the most."""
    for number, (name, word) in enumerate(_PANELS.items()):
        panel: Axes = figure.add_subplot(*shape, number + 1)
        for style, groups in series:
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
        panel.set_ylabel(word)
        panel.grid(alpha=0.3)
        if name == "attack_success":
            _percent_axis(panel)
        yield panel
