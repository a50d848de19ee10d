"""Rows that a change of the rule for planted labels does not touch: each is scanned again and asked.

    python benchmarks/confirm.py table              rows of results/table
    python benchmarks/confirm.py table '*-sig-*'    those of some cells

The settings of that rule are part of a row's key, so that a new rule makes all rows "earlier settings". It
changes nothing of a row, though, in whose data neither the rule that it was computed with nor the present
one calls a label planted or doubts one: detector, split and cure are the same then. That is asked of a scan
of the same data on this machine, which may round otherwise than the row's: whether its figures are the
row's to the last digit is noted. Such a row takes the present key, and says under `confirmed` how that was
found out; any other is left, for `clipguard bench` to compute again.

What came later (`LATER`) follows a flagged label: another look, no re-admission, what the cure makes of
such samples, and what the victim's activations say of them. A row that was confirmed before has no flagged
label, so that it is not scanned once more; nor is `retrain`, which asks no victim, where nothing else is new.
"""

import re
import sys
import tempfile
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from clipguard.data import ImageSource
from clipguard.detection.label_flow import NO_LOG_PROB, label_flow_z
from clipguard.lab.benchmark.cells import CellRunner
from clipguard.lab.benchmark.machine import commit, machine
from clipguard.lab.benchmark.rows import Task, key_of, tasks_of
from clipguard.lab.evaluation import detection
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.pipeline import DefenseConfig, Scan
from clipguard.pipeline.defender import Defender
from clipguard.runs import read_array, read_json, write_json
from works import RESULTS, config_of, works

RULE = re.compile(r"noise=LabelFlowConfig\([^)]*\)")
FIRST = "noise=LabelFlowConfig(folds=5, implausible=3.0, label_flow_z=4.0, outlier=2.5)"
ACTIVATIONS = re.compile(r", activations=FeatureSeparationConfig\([^)]*\)")
LATER = re.compile(ACTIVATIONS.pattern + r"|, (?:looks|sure|mislabelled|relabel)=[\d.]+")
COMMAND = "python benchmarks/confirm.py"
BUILT_ON_A_SCAN = ("clipguard", "retrain", "finetune")


def confirm(name: str, pattern: str) -> None:
    """Give every row of the benchmark that the present rule judges like its own the present key."""
    config = config_of(name)
    for work in works(name):
        if not fnmatchcase(work.name, pattern):
            continue
        folder = RESULTS / name / "cells" / work.name
        tasks = [task for task in tasks_of(config) if task.label in BUILT_ON_A_SCAN]
        pairs = [(folder / f"{task.label}.json", task) for task in tasks]
        pairs = [pair for pair in pairs if pair[0].exists()]
        for file, task in pairs:
            if confirmed_before(work, file, task) or asks_no_victim(work, file, task):
                row, again = read_json(file), {"command": f"{COMMAND} {name}", **provenance()}
                renew(work, file, task, {**row.get("confirmed", {}), "renewed": again})
        stale = [pair for pair in pairs if differs_by_rule(work, *pair)]
        found = scanned(work, DefenseConfig(seed=work.cell.seed)) if stale else None
        for file, task in stale:
            told = compared(read_json(file), found, work.poisoned[1])
            print(f"{work.name}, {file.stem}: {told}", flush=True)
            if not any(told[name] for name in ("label_only_poison", "planted_labels_then", "doubted_labels")):
                renew(work, file, task, {"command": f"{COMMAND} {name} {pattern}", **provenance(), **told})


def renew(work: CellRunner, file: Path, task: Task, confirmed: dict[str, Any]) -> None:
    """Give a row the present key and settings, and write down why."""
    row = read_json(file)
    renewed = {"key": key_of(work.cell, task), "confirmed": confirmed}
    write_json(file, {**row, **renewed, "settings": {**row["settings"], "row": task.settings}})


def confirmed_before(work: CellRunner, file: Path, task: Task) -> bool:
    """Return whether a row lacks the present key only for what follows a flagged label, and has none."""
    row = read_json(file)
    then, now = row["settings"]["row"]["with"], task.settings["with"]
    nothing = [row.get("confirmed", {}).get(name) for name in ("label_only_poison", "doubted_labels")] == [
        0,
        0,
    ]
    return nothing and row["key"] != key_of(work.cell, task) and LATER.sub("", then) == LATER.sub("", now)


def asks_no_victim(work: CellRunner, file: Path, task: Task) -> bool:
    """Return whether nothing but the rule for a victim's activations tells a row from one that asks none."""
    row = read_json(file)
    then, now = row["settings"]["row"]["with"], task.settings["with"]
    alike = ACTIVATIONS.sub("", then) == ACTIVATIONS.sub("", now)
    return task.label == "retrain" and alike and row["key"] != key_of(work.cell, task)


def differs_by_rule(work: CellRunner, file: Path, task: Task) -> bool:
    """Return whether nothing but the rule for planted labels tells a row's settings from the present ones."""
    row = read_json(file)
    then, now = row["settings"]["row"]["with"], task.settings["with"]
    if LATER.sub("", then) != LATER.sub("", now) and (
        FIRST not in then or LATER.sub("", then.replace(FIRST, "")) != LATER.sub("", RULE.sub("", now))
    ):
        return False
    if row["key"] == key_of(work.cell, task):
        return False
    # Last, since it may have a helper net trained.
    return bool(row["fingerprint"] == work.poisoned[0].fingerprint)


def compared(row: dict[str, Any], found: Scan, truth: PoisonTruth) -> dict[str, Any]:
    """Return how many labels the present rule calls planted or doubts, and how many the first one did."""
    odds = read_array(found.stages["labels"].path / "odds.npy")
    unexplained = ~(found.split.triggered & ~found.mislabelled)
    then = found.mislabelled
    if FIRST in row["settings"]["row"]["with"]:
        then = by_the_first_rule(found.entropy.guide_nll, odds, found.data.labels, unexplained)
    figures = detection(found.entropy, found.split, found.data, truth)
    return {
        "label_only_poison": int(found.mislabelled.sum()),
        "planted_labels_then": int(then.sum()),
        "doubted_labels": int((~found.split.admissible & ~found.split.triggered).sum()),
        "detection_same_to_the_last_digit": row["detection"].items() <= figures.items()
        if "detection" in row
        else None,
    }


def by_the_first_rule(
    guide_nll: np.ndarray, odds: np.ndarray, labels: np.ndarray, unexplained: np.ndarray
) -> np.ndarray:
    """Return the labels that were called planted when a class was judged by all its implausible ones."""
    own, said = odds[np.arange(len(labels)), labels], odds.argmax(1)
    implausible = unexplained & (own > NO_LOG_PROB) & (said != labels) & (np.minimum(guide_nll, -own) > 3)
    excess = label_flow_z(implausible, odds, labels, unexplained)
    usual = max(1.0, 1.4826 * float(np.median(np.abs(excess - np.median(excess)))))
    return implausible & ((excess > 4) & (excess - np.median(excess) > 2.5 * usual))[labels]


def scanned(work: CellRunner, plan: DefenseConfig) -> Scan:
    """Return what the present settings find in the cell's data."""
    data = work.poisoned[0]
    source = ImageSource.open((data.images, data.labels), classes=data.class_names)
    run = Path(tempfile.gettempdir()) / "clipguard-confirm" / work.name
    return Defender(work.guide, run, plan=plan).scan(source, model_size=data.images.shape[1:3]).found_


def provenance() -> dict[str, str]:
    """Return what a figure was made with."""
    return {
        "commit": commit(),
        "machine": machine(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


if __name__ == "__main__":
    confirm(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "*")
