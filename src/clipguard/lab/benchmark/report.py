"""results.parquet to Markdown and pictures: rates with their spread over seeds, goals, detection, failures.

Reads nothing else, and needs no torch.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Final

from clipguard.lab.benchmark.goals import (
    AXES,
    GOALS,
    LOSS,
    RECALL_IMAGES,
    UNSCORED,
    Group,
    axis_word,
    cell_text,
    groups,
    has_recall_goal,
    percent,
    varying_axes,
)
from clipguard.lab.benchmark.results import RESULTS_LOCK, Row, read_results
from clipguard.runs.files import write_text
from clipguard.runs.locks import locked
from clipguard.runs.summary import METRICS

_TIME: Final = (
    "Seconds of one process on the machine named above. A defence finds its image embeddings in a cache, so "
    "that reading looks fast. *Guide pass* is the time to embed all images without that cache."
)

_ABOUT_RATES: Final = (
    "Mean over seeds ± standard deviation. *n* is the number of test images of a seed, then the number of "
    "attacked ones. The reference is the mean of several trainings, and all seeds are held against it."
)

_ABOUT_SUMMARY: Final = (
    "Over the cells of a data set whose attack succeeded: how many meet which goal. *CA*: the mean change of "
    f"clean accuracy in points (goal: at least −{100 * LOSS:g}), then in how many cells it is significantly "
    f"below. Target recall is a goal of cells with at least {RECALL_IMAGES} test images of the class. "
    "Detection: means over the cells."
)

_DETECTION: Final = {
    "detection_auroc_guide": "AUROC guide",
    "detection_auroc_early": "AUROC early model",
    "detection_auroc_suspicion": "AUROC suspicion",
    "detection_found_at_1_percent": "TPR at 1 % FPR",
    "detection_flagged_recall": "recall",
    "detection_flagged_precision": "precision",
    "detection_false_positive_rate": "FPR",
}

_PLAIN: Final = "{:.2f}".format


def write_bench_report(run: Path) -> tuple[list[Path], str | None]:
    """Return the files written into `run` from its results.parquet, and why there are no pictures, if so.

    Raises:
        ClipguardError: there is no such file, or it is damaged.
    """
    rows = read_results(run)
    page = run / "results.md"
    # Several processes may work in one folder.
    with locked(run / RESULTS_LOCK):
        write_text(page, markdown(rows))
        try:
            from clipguard.lab.benchmark.pictures import write_pictures
        except ImportError:
            return [page], 'pictures of a benchmark need matplotlib: pip install "clipguard[bench]"'
        return [page, *write_pictures(groups(rows), run)], None


def markdown(rows: list[Row]) -> str:
    """Return the whole report of a benchmark's rows."""
    all_groups = groups(rows)
    axes = varying_axes([group.rows[0] for group in all_groups])
    lines = ["# Results", "", f"Goal: {GOALS}.", "", *_provenance(rows), ""]
    head, rule, *scored = summary(all_groups)
    lines += ["## In one view", "", _ABOUT_SUMMARY, "", head, rule, *scored, ""] if scored else []
    lines += ["## Rates", "", _ABOUT_RATES, "", *_rates(all_groups, axes), ""]
    lines += ["## Detection and time", "", _TIME, "", *_detections(all_groups, axes), ""]
    failed = [
        f"* {row['data']}, {row['attack']}, seed {row['seed']}, {row['row']}: {_escaped(str(row['error']))}"
        for row in rows
        if row["error"] is not None
    ]
    return "\n".join([*lines, "## Not computed", "", *failed, ""] if failed else lines)


def verdicts(group: Group) -> str:
    """Return the goal of a group in one line: how many scored seeds met it, and what others say."""
    scored = [text for text in group.goals if text not in UNSCORED]
    if not scored:
        return " / ".join(dict.fromkeys(text for text in group.goals if text))
    pairs = zip(group.rows, group.goals, strict=True)
    remarks = [f"seed {row['seed']}: {text}" for row, text in pairs if text not in ("met", "")]
    misses = len(scored) - scored.count("met")
    result = f"missed by {misses} of {len(scored)}" if misses else f"met ({len(scored)} of {len(scored)})"
    return f"{result}: {' / '.join(remarks)}" if remarks else result


def spread(values: Sequence[float], text: Callable[[float], str] = percent) -> str:
    """Return mean ± standard deviation as `text` writes them; – for no value, no deviation for one."""
    if not values:
        return "–"
    mean = text(fmean(values))
    return mean if len(values) == 1 else f"{mean} ± {text(stdev(values))}"


def _provenance(rows: list[Row]) -> list[str]:
    """Return what is the same for all rows, and the commands, commits and machines that made them."""

    def distinct(name: str) -> str:
        texts = sorted({str(row[name]) for row in rows if row.get(name) is not None})
        return ", ".join(f"`{_escaped(text)}`" for text in texts) or "unknown"

    same = {name: rows[0][name] for name in AXES if rows and name not in varying_axes(rows)}
    words = [
        _escaped(word if name in ("epochs", "variant", "degrade") else f"{name} {word}")
        for name, value in same.items()
        if value and (word := axis_word(name, value))
    ]
    return [
        f"The same for all rows: {', '.join(words)}." if words else "",
        f"Command: {distinct('command')}. Commit: {distinct('commit')}. Machine: {distinct('machine')}.",
    ]


def summary(all_groups: list[Group]) -> list[str]:
    """Return a line for each data set, net and scored row: in how many cells which goal is met."""
    lines = [
        ["data", "net", "row", "cells", "all goals", "ASR", "CA", "target recall", "TPR", "FPR", "AUROC"]
    ]
    scored: dict[tuple[str, str, str], list[tuple[Row, str]]] = defaultdict(list)
    for group in all_groups:
        for row, goal in zip(group.rows, group.goals, strict=True):
            # Without an attack there is neither a success nor poison to find.
            if goal not in UNSCORED and row["attack_successes"]:
                scored[(row["data"], row["net"], group.label)].append((row, goal))
    for names, pairs in scored.items():
        goals = [goal for _, goal in pairs]
        met = [sum(word not in goal for goal in goals) for word in ("ASR", "CA")]
        of_recall = [goal for row, goal in pairs if has_recall_goal(row)]
        change = fmean((row["paired_gained"] - row["paired_lost"]) / row["paired_n"] for row, _ in pairs)
        rows = [row for row, _ in pairs]
        lines.append(
            [
                *names,
                str(len(pairs)),
                str(goals.count("met")),
                str(met[0]),
                f"{100 * change:+.2f}, {len(pairs) - met[1]} below",
                f"{sum('target recall' not in goal for goal in of_recall)} of {len(of_recall)}"
                if of_recall
                else "–",
                *(_mean_of(rows, f"detection_{name}") for name in _SUMMARISED),
            ]
        )
    return table(lines)


_SUMMARISED: Final = ("flagged_recall", "false_positive_rate", "auroc_suspicion")


def _mean_of(rows: list[Row], name: str) -> str:
    values = [row[name] for row in rows if row.get(name) is not None]
    return f"{fmean(values):.4f}" if values else "–"


def _rates(all_groups: list[Group], axes: Sequence[str]) -> list[str]:
    lines = [
        ["cell", "row", *(f"{metric.short or metric.title} %" for metric in METRICS), "seeds", "n", "goal"]
    ]
    for group in all_groups:
        rates = [spread(group.values(metric.name)) for metric in METRICS]
        sizes = ", ".join(sorted({_size(row) for row in group.rows}))
        cell = cell_text(group.rows[0], axes)
        lines.append([cell, group.label, *rates, str(len(group.rows)), sizes, verdicts(group)])
    return table(lines)


def _size(row: Row) -> str:
    """Return how many test images the clean accuracy and, if anything was attacked, its success are of."""
    attacked = row["attack_n"]
    if row["n"] is None:
        return "–"
    return f"{row['n']:,}" if attacked is None else f"{row['n']:,}; {int(attacked):,}"


def _detections(all_groups: list[Group], axes: Sequence[str]) -> list[str]:
    last = ["wrongly flagged, worst class", "poison left in clean", "seconds by stage"]
    lines = [["cell", "row", *_DETECTION.values(), *last]]
    for group in all_groups:
        if poisoned := group.values("detection_poisoned"):
            figures = [spread(group.values(name), _PLAIN) for name in _DETECTION]
            left = spread(group.values("detection_poison_in_clean"), _PLAIN)
            figures += [_worst_class(group), f"{left} of {spread(poisoned, _PLAIN)}", _seconds(group)]
            lines.append([cell_text(group.rows[0], axes), group.label, *figures])
    return table(lines)


def _worst_class(group: Group) -> str:
    """Return the largest share of a class that is flagged without being poison, where rows hold it."""
    shares = [
        max(wrong / max(1, size) for wrong, size in zip(wrongly, row["detection_class_sizes"], strict=True))
        for row in group.rows
        if (wrongly := row["detection_class_wrongly_flagged"]) is not None
    ]
    return spread(shares) + (" %" if shares else "")


def _seconds(group: Group) -> str:
    names = dict.fromkeys(name for row in group.rows for name in row if name.startswith("seconds_"))
    seconds = {"guide pass": group.values("guide_pass_seconds")}
    seconds |= {name.removeprefix("seconds_"): group.values(name) for name in names}
    return ", ".join(f"{name} {fmean(values):.0f}" for name, values in seconds.items() if values)


def table(lines: list[list[str]]) -> list[str]:
    """Return a Markdown table; its first line is the head."""
    head, *rows = (f"| {' | '.join(map(_escaped, line))} |" for line in lines)
    return [head, "|" + "---|" * len(lines[0]), *rows]


def _escaped(text: str) -> str:
    """Return text that cannot end its table cell or line."""
    return " ".join(text.split()).replace("|", "\\|")
