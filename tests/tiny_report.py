"""A small finished run, as a report reads it."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from clipguard.clip.embeddings import image_file
from clipguard.runs import (
    DescribedStage,
    RunFolder,
    ShardedArray,
    SourceInfo,
    read_json,
    write_array,
    write_json,
    write_table,
)
from clipguard.runs.samples_table import DESCRIPTIONS, in_table_order
from clipguard.triggers.affine import AffineTrigger, write_triggers

RATES = {"target_recall": None, "n": 1000, "attack_n": 900, "measured_on": "test set"}
FULL = {
    "command": "defend",
    "version": "0.1.0",
    "seed": 7,
    "threads": 2,
    "device": "cpu",
    "run_dir": "runs/tiny",
    "verdict": {"answer": "suspicious", "reasons": ["many samples were learnt early"]},
    "data": {
        "location": "./data",
        "n": 150,
        "classes": ["cat", "dog", "ship"],
        "empty_classes": ["unicorn"],
        "unreadable": 3,
        "size": [8, 8],
    },
    "guide": {"name": "mini", "scale": 22.0, "agreement": 0.55},
    "partition": {
        "clean": 75,
        "uncertain": 56,
        "excluded": 3,
        "flagged_for_a_trigger": 14,
        "flagged_for_its_label": 1,
        "held_out": 1,
    },
    "few_clean": ["dog"],
    "stages": {
        "embeddings": {"title": "read and embed the images", "seconds": 53.1},
        "early_model": {"title": "train the early-training model", "seconds": 80.2},
    },
    "warnings": ["the images are much larger than what is looked at"],
    "files": {"report": "runs/tiny/report.html", "samples": "runs/tiny/samples.parquet"},
    "before": {"accuracy": 0.774, "attack_success": 0.951, "robust_accuracy": 0.03} | RATES,
    "after": {"accuracy": 0.772, "attack_success": 0.018, "robust_accuracy": 0.74} | RATES,
    "detection": None,
}
VERDICT = {
    "answer": "suspicious",
    "reasons": ["class dog stands out by its pixels"],
    "findings": [
        {
            "class_name": "dog",
            "label": 1,
            "kind": "trigger",
            "flagged": 234,
            "at_least": 180,
            "strength": 12.34,
            "p_value": 1e-9,
            "believed_with": 1.0,
            "believed_without": 0.02,
        },
        {
            "class_name": "ship",
            "label": 2,
            "kind": "label-only poison",
            "flagged": 1045,
            "p_value": 0.003,
            "from_class": "cat",
            "deep_share": 0.27,
        },
        {"class_name": "cat", "label": 0, "kind": "shortcut", "flagged": 40, "strength": 3.0},
    ],
    "power": {
        "copies": 1,
        "canaries": [
            {"family": "patch", "class_name": "cat", "samples": 60, "identified": True},
            {"family": "blend", "class_name": "dog", "samples": 55, "identified": True},
            {"family": "sinusoid", "class_name": "ship", "samples": 60, "identified": True},
            {"family": "clean-label", "class_name": "bird", "samples": 60, "identified": False},
        ],
    },
    "not_assessable": ["ship"],
    "limits": ["a trigger of under 2 pixels a side leaves no trace"],
    "complete": True,
}
"""A verdict with one finding of each kind, and one canary missed."""

SCAN = FULL | {"command": "scan", "before": None, "after": None}


def make_run(path: Path, n: int = 150, *, names=("cat", "dog", "ship"), ids=None, side=8, run=FULL) -> Path:
    """Write a small run whose most suspicious samples are known: rank 1 is the last row.

    The first half is trusted, and the last tenth flagged for trigger 1, but for its last row but one, which
    is flagged for its label. Of those between, one is held out, three are excluded, the others uncertain.
    """
    rng = np.random.default_rng(0)
    ids = tuple(ids or (f"train/{i}.png" for i in range(n)))
    labels = np.arange(n) % len(names)
    pixels = rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    info = SourceInfo(
        kind="folder", location="./data", key="k1", n=n, class_names=tuple(names), from_path=True
    )
    folder = RunFolder.open(path, info, {"epochs": 5}, seed=0)
    _finish(folder, "embeddings", lambda at: _write_names(at, ids))
    _finish(folder, "images", lambda at: _write_images(at, pixels))
    ranks = (np.arange(n) + 1) / n
    half, flagged = n // 2, n // 10
    states = [("trusted", "")] * half + [("set aside", "held out")] + [("set aside", "excluded")] * 3
    states += [("set aside", "uncertain")] * (n - len(states) - flagged) + [("flagged", "trigger")] * flagged
    states[-2] = ("flagged", "label")
    columns = {
        "row": np.arange(n),
        "id": ids,
        "path": ids,
        "sha256": [hashlib.sha256(name.encode()).hexdigest() for name in ids],
        "label": labels,
        "given_label": [names[i] for i in labels],
        "predicted_label": [names[(i + 1) % len(names)] for i in labels],
        "guide_nll": ranks * 9,
        "early_nll": (1 - ranks) * 9,
        "guide_rank": ranks,
        "early_rank": ranks[::-1].copy(),
        "trigger_score": np.full(n, np.nan),
        "poison_score": ranks,
        "q_value": 1 - ranks,
        "rank": n - np.arange(n),
        "status": [status for status, _ in states],
        "reason": [reason for _, reason in states],
        "trigger": np.array([int(reason == "trigger") for _, reason in states]),
    }
    table, order = in_table_order(columns)
    write_table(path / "samples.parquet", table, ["trigger_score"], DESCRIPTIONS, order)
    data = run["data"] | {"n": n, "classes": list(names)}
    write_json(path / "summary.json", run | {"data": data})
    return path


def add_triggers(run: Path, triggers: list[AffineTrigger]) -> None:
    """Add the finished stage that reconstructs triggers to a run."""
    source = read_json(run / "manifest.json")["source"]
    info = SourceInfo(**source | {"class_names": tuple(source["class_names"])})
    folder = RunFolder.open(run, info, {"epochs": 5}, seed=0)
    _finish(folder, "trigger_inversion", lambda at: write_triggers(triggers, at))


def _finish(folder: RunFolder, name: str, compute: Callable[[Path], None]) -> None:
    folder.stage(DescribedStage(name=name, version=1, config={}, inputs=[]), compute)


def _write_names(folder: Path, ids: tuple[str, ...]) -> None:
    """Write which image lies where as a scan does, in more than one file."""
    (folder / "metadata").mkdir()
    for shard, part in enumerate(np.array_split(np.array(ids, object), 3)):
        write_table(folder / f"metadata/metadata_{shard:06d}.parquet", {"image_path": part.tolist()})


def _write_images(folder: Path, pixels: np.ndarray) -> None:
    """Write images as a scan does, in more than one file."""
    for shard, part in enumerate(np.array_split(pixels, 3)):
        write_array(image_file(folder, shard), part)


def images_of(run: Path) -> np.ndarray:
    """Return the images that a run keeps."""
    return ShardedArray.of(run / "stages" / "images")[:]
