"""Make results/table.md and results/table.png from the cells that are there, without any training.

python benchmarks/report_table.py
"""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).resolve().parent / "results"
ROWS = {
    "none": "no defence",
    "oracle": "oracle",
    "clipguard": "**clipguard**",
    "retrain": "clipguard, `--by retrain`",
    "finetune": "control: fine-tuned on all",
}
PLANTED = 0.8
Cell = dict[str, dict[str, Any]]


def cells() -> dict[str, Cell]:
    """Return the finished rows of every cell, by folder name."""
    found = {}
    for folder in sorted((RESULTS / "cells").iterdir()):
        found[folder.name] = {
            name: json.loads((folder / f"{name}.json").read_text())
            for name in ROWS
            if (folder / f"{name}.json").exists()
        }
    return found


def percent(rate: float | None) -> str:
    """Return a rate as per cent with two decimals."""
    return "–" if rate is None else f"{100 * rate:.2f}"


def goal(cell: Cell, row: dict[str, Any]) -> str:
    """Return whether a defended row meets the goals of its cell, and by how much it misses."""
    before, oracle = cell["none"], cell.get("oracle")
    lost = 100 * (before["accuracy"] - row["accuracy"])
    misses = [] if lost <= 0.3 else [f"CA −{lost:.2f} (allowed −0.30)"]
    if before["attack_success"] is None:
        return "; ".join(misses) or "met"
    if before["attack_success"] < PLANTED:
        return "not planted: no credit"
    if oracle is None:
        return "oracle missing"
    bound = max(0.01, oracle["attack_success"] + 0.005)
    if row["attack_success"] > bound:
        misses.append(f"ASR {percent(row['attack_success'])} > {percent(bound)}")
    recall = 100 * (before["target_recall"] - row["target_recall"])
    if recall > 2:
        misses.append(f"target recall −{recall:.1f}")
    return "; ".join(misses) or "met"


def table(found: dict[str, Cell]) -> list[str]:
    """Return the Markdown lines of the main table."""
    lines = [
        "| cell | row | CA % | ASR % | recovery % | target recall % | n | goal | commit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, cell in found.items():
        for key, label in ROWS.items():
            if key not in cell:
                lines.append(f"| {name} | {label} | not run | | | | | | |")
                continue
            row = cell[key]
            verdict = goal(cell, row) if key in ("clipguard", "retrain") else ""
            rates = " | ".join(
                percent(row[rate]) for rate in ("accuracy", "attack_success", "recovery", "target_recall")
            )
            lines.append(f"| {name} | {label} | {rates} | {row['n']} | {verdict} | `{row['commit']}` |")
    return lines


def detections(found: dict[str, Cell]) -> list[str]:
    """Return the Markdown lines of what was found, and in what time."""
    lines = [
        "| cell | AUROC guide | AUROC suspicious | AUROC suspicion | poison left in clean | triggered "
        "| recall | precision | seconds: read, suspect, detect, cure |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    digits = lambda value: "–" if value is None else f"{value:.3f}"  # noqa: E731  # a format, not a function
    for name, cell in found.items():
        if "clipguard" not in cell:
            continue
        told, seconds = cell["clipguard"]["detection"], cell["clipguard"]["seconds"]
        scores = " | ".join(digits(told[key]) for key in ("auroc_guide", "auroc_suspect", "auroc_suspicion"))
        found_by = " | ".join(digits(told[key]) for key in ("triggered_recall", "triggered_precision"))
        times = ", ".join(str(seconds[key]) for key in ("read", "suspect", "detect", "cure"))
        lines.append(
            f"| {name} | {scores} | {told['poison_in_clean']} of {told['poisoned']} (clean: {told['clean']}) "
            f"| {told['triggered']} | {found_by} | {times} |"
        )
    return lines


def picture(found: dict[str, Cell]) -> None:
    """Write results/table.png: before, after and oracle of each planted cell, ASR against CA."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    marks = {
        "none": ("x", "tab:red"),
        "clipguard": ("o", "tab:blue"),
        "retrain": ("s", "tab:cyan"),
        "oracle": ("*", "tab:green"),
        "finetune": ("+", "tab:gray"),
    }
    for key, (mark, colour) in marks.items():
        points = [
            (100 * cell[key]["accuracy"], 100 * cell[key]["attack_success"])
            for cell in found.values()
            if key in cell and cell[key]["attack_success"] is not None
        ]
        if points:
            axes.scatter(
                *zip(*points, strict=True),
                marker=mark,
                color=colour,
                label=ROWS[key].replace("*", "").replace("`", ""),
            )
    axes.set(xlabel="clean accuracy, %", ylabel="attack success, %", yscale="symlog", ylim=(-0.2, 110))
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(RESULTS / "table.png", dpi=130)


def main() -> None:
    """Write table.md and table.png."""
    found = cells()
    about = next(row for cell in found.values() for row in cell.values())
    text = [
        "# Results",
        "",
        f"Machine: {about['machine']}. Commands: `python benchmarks/table.py PROTOCOL:ATTACK:SEED`.",
        "",
    ]
    text += [*table(found), "", "## Detection and time", "", *detections(found), ""]
    (RESULTS / "table.md").write_text("\n".join(text))
    picture(found)


if __name__ == "__main__":
    main()
