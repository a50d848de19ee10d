"""results.parquet to Markdown: rates with their spread over seeds, goals, detection, time, what failed."""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any, Final

from clipguard.lab.benchmark.goals import AXES, GOALS, NOT_PLANTED, Group, groups

Row = dict[str, Any]

_TIME: Final = (
    "Seconds of one process on the machine named above. Cells share image embeddings, so that `read` may be "
    "short; `guide's pass` is what reading all images with the guide takes without that."
)

_RATES_TOLD: Final = (
    "Mean over seeds ± standard deviation; n test images a seed, then how many of them are attacked, where a "
    "row knows it. The oracle is one training, which all seeds are held against."
)

_RATES: Final = {
    "accuracy": "CA %",
    "attack_success": "ASR %",
    "robust_accuracy": "robust_accuracy %",
    "target_recall": "target recall %",
}
_DETECTION: Final = {
    "detection_auroc_guide": "AUROC guide",
    "detection_auroc_suspect": "AUROC suspicious",
    "detection_auroc_suspicion": "AUROC suspicion",
    "detection_triggered_recall": "recall",
    "detection_triggered_precision": "precision",
}


def markdown(rows: list[Row]) -> str:
    """Return the whole report of a benchmark's rows."""
    found = groups(rows)
    shown = _shown_axes(found)
    parts = [
        ["# Results", "", f"Goal: {GOALS}.", "", *_provenance(rows), ""],
        ["## Rates", "", _RATES_TOLD, ""],
        [*_rates(found, shown), ""],
        ["## Detection and time", "", _TIME, "", *_detections(found, shown), ""],
    ]
    failed = [row for row in rows if row["error"] is not None]
    if failed:
        lines = [f"* {row['data']}, {row['attack']}, seed {row['seed']}, {row['row']}: " for row in failed]
        told = [line + _cell(str(row["error"])) for line, row in zip(lines, failed, strict=True)]
        parts.append(["## Not computed", "", *told, ""])
    return "\n".join(line for part in parts for line in part)


def verdicts(group: Group) -> str:
    """Return the goal of a group in one line: how many seeds met it, and what the others missed."""
    told = [text for text in group.goals if text]
    if not told:
        return ""
    met = sum(text == "met" for text in told)
    if met == len(told):
        return f"met ({met} of {met})"
    pairs = zip(group.rows, group.goals, strict=True)
    misses = [f"seed {row['seed']}: {text}" for row, text in pairs if text not in ("met", "")]
    if {text for text in told} == {NOT_PLANTED}:
        return NOT_PLANTED
    return f"missed by {len(misses)} of {len(told)}: " + " / ".join(misses)


def spread(values: Sequence[float], scale: float = 100.0) -> str:
    """Return mean ± standard deviation of scaled values; – for none, no deviation for one."""
    if not values:
        return "–"
    mean = f"{scale * fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {scale * stdev(values):.2f}"


def axis_text(group: Group, shown: Sequence[int]) -> str:
    """Return what tells the group's cells from others, in words."""
    untouched = group.axes[AXES.index("attack")] == "none"
    told = [number for number in shown if not (untouched and AXES[number] == "rate")]
    words = (_axis_word(AXES[number], group.axes[number]) for number in told)
    return ", ".join(word for word in words if word)


def _axis_word(axis: str, value: Any) -> str:
    if axis == "rate":
        return f"{100 * value:g} %"
    if axis == "epochs":
        return f"{value} epochs"
    return f"{value:g} of the guide replaced by noise" if axis == "degrade" else str(value)


def _shown_axes(found: list[Group]) -> list[int]:
    """Return the axes that vary, and always the attack."""
    return [
        number
        for number, name in enumerate(AXES)
        if name == "attack" or len({group.axes[number] for group in found}) > 1
    ]


def _provenance(rows: list[Row]) -> list[str]:
    """Return what all figures stand on: commands, commits, machines."""

    def distinct(name: str) -> str:
        found = sorted({str(row.get(name)) for row in rows if row.get(name) is not None})
        return ", ".join(f"`{_cell(text)}`" for text in found) or "unknown"

    same = [name for name in AXES if len({row[name] for row in rows}) == 1]
    words = {name: _axis_word(name, rows[0][name]) for name in same if rows[0][name]}
    axes = [
        _cell(word if name in ("epochs", "variant") else f"{name} {word}") for name, word in words.items()
    ]
    return [
        f"The same for all rows: {', '.join(axes)}." if axes else "",
        f"Command: {distinct('command')}. Commit: {distinct('commit')}. Machine: {distinct('machine')}.",
    ]


def _rates(found: list[Group], shown: Sequence[int]) -> list[str]:
    lines = _head(["cell", "row", *_RATES.values(), "seeds", "n", "goal"])
    for group in found:
        rates = [spread(group.values(name)) for name in _RATES]
        count = ", ".join(sorted({_size(row) for row in group.rows}))
        entries = [axis_text(group, shown), group.label, *rates, str(len(group.rows)), count, verdicts(group)]
        lines.append(_line(entries))
    return lines


def _size(row: Row) -> str:
    """Return how many test images the clean accuracy and, where that is known, the attack success are of."""
    attacked = row.get("attack_n")
    return f"{row['n']:,}" if attacked is None else f"{row['n']:,}; {int(attacked):,}"


def _detections(found: list[Group], shown: Sequence[int]) -> list[str]:
    told = [*_DETECTION.values(), "wrongly flagged, worst class", "poison left in clean", "seconds by stage"]
    lines = _head(["cell", "row", *told])
    for group in found:
        if not group.values("detection_poisoned"):
            continue
        figures = [spread(group.values(name), 1.0) for name in _DETECTION]
        left = spread(group.values("detection_poison_in_clean"), 1.0)
        total = spread(group.values("detection_poisoned"), 1.0)
        figures += [_worst_class(group), f"{left} of {total}", _seconds(group)]
        entries = [axis_text(group, shown), group.label, *figures]
        lines.append(_line(entries))
    return lines


def _worst_class(group: Group) -> str:
    """Return the largest share of a class that is flagged without being poison, where rows know it."""
    shares = [
        max(wrong / max(1, size) for wrong, size in zip(wrongly, row["detection_class_sizes"], strict=True))
        for row in group.rows
        if (wrongly := row.get("detection_class_wrongly_triggered")) is not None
    ]
    return spread(shares) + (" %" if shares else "")


def _seconds(group: Group) -> str:
    names = dict.fromkeys(name for row in group.rows for name in row if name.startswith("seconds_"))
    told = [(name.removeprefix("seconds_"), group.values(name)) for name in names]
    told.insert(0, ("guide's pass", group.values("guide_pass_seconds")))
    return ", ".join(f"{name} {fmean(values):.0f}" for name, values in told if values)


def _head(names: Sequence[str]) -> list[str]:
    return [_line(names), "|" + "---|" * len(names)]


def _line(entries: Sequence[str]) -> str:
    return f"| {' | '.join(_cell(entry) for entry in entries)} |"


def _cell(text: str) -> str:
    """Return text that cannot end its table cell or line."""
    return " ".join(text.split()).replace("|", "\\|")
