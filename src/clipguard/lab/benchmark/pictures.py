"""Pictures of results.parquet: rates by attack with their spread over seeds, and against what varies."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from clipguard.errors import ClipguardError
from clipguard.lab.benchmark.goals import (
    OTHER_MODEL,
    REFERENCE_ROW,
    STALE_SETTINGS,
    UNDEFENDED_ROW,
    Group,
    axis_text,
    groups,
    varying_axes,
)
from clipguard.lab.benchmark.results import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKS: Final = {
    UNDEFENDED_ROW: ("x", "tab:red"),
    REFERENCE_ROW: ("*", "tab:green"),
    "clipguard": ("o", "tab:blue"),
}
_OTHERS: Final = (("s", "tab:cyan"), ("+", "tab:gray"), ("D", "tab:orange"), ("v", "tab:purple"))
_WORDS: Final = {
    UNDEFENDED_ROW: "no defence",
    REFERENCE_ROW: "clean-trained reference",
    "finetune": "fine-tuned on all",
}
_PANELS: Final = {"attack_success": "attack success, %", "accuracy": "clean accuracy, %"}


def write_pictures(rows: list[Row], run: Path) -> list[Path]:
    """Return the pictures drawn into `run`: by cell, and against poison rate and guide accuracy if they vary.

    Raises:
        ClipguardError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ClipguardError(
            'pictures of a benchmark need matplotlib: pip install "clipguard[bench]"'
        ) from error
    all_groups = groups(rows)
    if not all_groups:
        return []
    drawn = [_saved(_by_cell(all_groups, Figure), run / "results.png")]
    if rates := _varying(all_groups, "rate"):
        figure = _against(rates, _poison_rate, "poison rate, %", Figure)
        drawn.append(_saved(figure, run / "results-rate.png"))
    if guided := _varying(all_groups, "guide", "degrade"):
        figure = _against(guided, _guide_accuracy(guided), "guide accuracy, %", Figure)
        drawn.append(_saved(figure, run / "results-guide.png"))
    return drawn


def _varying(all_groups: list[Group], *names: str) -> list[Group]:
    """Return the groups of the attacks for which one of these axes takes more than one value."""
    values: dict[str, set[tuple[Any, ...]]] = {}
    for group in all_groups:
        values.setdefault(_attack(group), set()).add(tuple(map(group.axis, names)))
    return [group for group in all_groups if len(values[_attack(group)]) > 1]


def _attack(group: Group) -> str:
    return str(group.axis("attack"))


def _poison_rate(group: Group) -> float:
    return 100 * float(group.axis("rate"))


def _saved(figure: "Figure", path: Path) -> Path:
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    figure.savefig(path, dpi=110)
    return path


def _style(label: str, labels: Sequence[str]) -> tuple[str, str, str]:
    """Return mark, colour and filling; a stale row or one of another model is hollow."""
    kinds = dict.fromkeys(_kind(name) for name in labels)
    kind = _kind(label)
    others = [name for name in kinds if name not in _MARKS]
    mark, colour = _MARKS[kind] if kind in _MARKS else _OTHERS[others.index(kind) % len(_OTHERS)]
    return mark, colour, "full" if label == kind else "none"


def _kind(label: str) -> str:
    """Return the label of the row as it would be if nothing had changed since."""
    return label.removesuffix(OTHER_MODEL).removesuffix(STALE_SETTINGS)


def _by_cell(all_groups: list[Group], figure_of: Callable[..., "Figure"]) -> "Figure":
    """Return one column a cell, one mark a row, bars from the least to the most over seeds."""
    labels = list(dict.fromkeys(group.label for group in all_groups))
    columns = list(dict.fromkeys(group.axes for group in all_groups))
    axes = varying_axes(columns)
    figure = figure_of(figsize=(max(6.0, 2 + 0.9 * len(columns)), 7))
    for number, (name, word) in enumerate(_PANELS.items()):
        axis = figure.add_subplot(2, 1, number + 1)
        for offset, label in enumerate(labels):
            shift = 0.6 * (offset / max(1, len(labels) - 1) - 0.5)
            points = [
                (columns.index(group.axes) + shift, group.values(name))
                for group in all_groups
                if group.label == label and group.values(name)
            ]
            _marks(axis, points, _WORDS.get(label, label), _style(label, labels))
        axis.set_xlim(-0.5, len(columns) - 0.5)
        axis.set_xticks(range(len(columns)))
        texts = [axis_text(column, axes) for column in columns]
        axis.set_xticklabels(texts, rotation=30, ha="right", fontsize=8)
        _finish(axis, name, word)
    # Above the panels, where no mark can lie under it.
    handles, words = figure.axes[1].get_legend_handles_labels()
    figure.legend(handles, words, loc="upper center", fontsize=7, ncols=3, bbox_to_anchor=(0.5, 1.0))
    return figure


def _against(
    all_groups: list[Group],
    along: Callable[[Group], float | None],
    horizontal: str,
    figure_of: Callable[..., "Figure"],
) -> "Figure":
    """Return ASR and CA over a number, one line a row and combination of everything else."""
    labels = list(dict.fromkeys(group.label for group in all_groups))
    figure = figure_of(figsize=(11, 4.5))
    for number, (name, title) in enumerate(_PANELS.items()):
        axis = figure.add_subplot(1, 2, number + 1)
        for label in labels:
            for attack in dict.fromkeys(map(_attack, all_groups)):
                points = sorted(
                    (place, group.values(name))
                    for group in all_groups
                    if group.label == label and _attack(group) == attack and group.values(name)
                    if (place := along(group)) is not None
                )
                word = f"{_WORDS.get(label, label)}, {attack}"
                _marks(axis, points, word, _style(label, labels), line=True)
        axis.set_xlabel(horizontal)
        _finish(axis, name, title)
    figure.axes[1].legend(fontsize=6)
    return figure


def _guide_accuracy(all_groups: list[Group]) -> Callable[[Group], float | None]:
    """Return a group's place by its guide's measured accuracy, which only defended rows carry themselves."""
    accuracies: dict[tuple[Any, ...], list[float]] = {}
    for group in all_groups:
        accuracies.setdefault(group.axes, []).extend(group.values("guide_accuracy"))

    def along(group: Group) -> float | None:
        values = accuracies[group.axes]
        return 100 * fmean(values) if values else None

    return along


def _marks(
    axis: "Axes",
    points: list[tuple[float, list[float]]],
    word: str,
    style: tuple[str, str, str],
    line: bool = False,
) -> None:
    """Draw the mean of each point's values, with a bar from the least to the most."""
    if not points:
        return
    mark, colour, filling = style
    means = [100 * fmean(values) for _, values in points]
    # Rounding may leave the mean a hair outside the extremes.
    below = [max(0.0, mean - 100 * min(values)) for mean, (_, values) in zip(means, points, strict=True)]
    above = [max(0.0, 100 * max(values) - mean) for mean, (_, values) in zip(means, points, strict=True)]
    axis.errorbar(
        [place for place, _ in points],
        means,
        yerr=[below, above],
        fmt=mark,
        color=colour,
        fillstyle=filling,
        markersize=9 if mark == "*" else 6,
        linestyle="-" if line else "none",
        linewidth=1,
        capsize=2,
        label=word,
    )


def _finish(axis: "Axes", name: str, word: str) -> None:
    axis.set_ylabel(word)
    axis.grid(alpha=0.3)
    if name == "attack_success":
        # Linear below 1 %, so that zero has a place; the goals lie there.
        axis.set_yscale("symlog", linthresh=1)
        axis.set_ylim(-0.2, 130)
        axis.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
