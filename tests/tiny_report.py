"""A small finished run, as a report reads it."""

from pathlib import Path

import numpy as np

from clipguard.runs import RunFolder, SourceInfo, write_image_set, write_json, write_table
from clipguard.types import image_set

FULL = {
    "command": "defend",
    "verdict": {"verdict": "suspicious", "reasons": ["many samples were learnt early"]},
    "guide": {"name": "mini", "scale": 22.0, "agreement": 0.55},
    "split": {"clean": 1, "triggered": 1, "unused": 0, "starved": ["dog"]},
    "before": {
        "accuracy": 0.774,
        "attack_success": 0.951,
        "robust_accuracy": 0.03,
        "measured_on": "test set",
    },
    "after": {"accuracy": 0.772, "attack_success": 0.018, "robust_accuracy": 0.74, "measured_on": "test set"},
    "seconds": {"read": 53.1, "suspect": 80.2},
    "curve": [
        {"step": 0, "accuracy": 0.77, "attack_success": 0.95},
        {"step": 10, "accuracy": 0.76, "attack_success": 0.1},
    ],
    "warnings": ["the images are much larger than what is looked at"],
    "version": "0.1.0",
    "seed": 0,
}


def make_run(path: Path, n: int = 150, *, names=("cat", "dog", "ship"), ids=None, side=8, run=FULL) -> Path:
    """Write a small run whose most suspicious samples are known: rank 1 is the last row."""
    rng = np.random.default_rng(0)
    ids = tuple(ids or (f"train/{i}.png" for i in range(n)))
    labels = np.arange(n) % len(names)
    pixels = rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    images = image_set(pixels, labels, tuple(names), ids)
    info = SourceInfo(
        kind="arrays", location="./data", fingerprint=images.fingerprint, n=n, class_names=tuple(names)
    )
    folder = RunFolder.open(path, info, {"epochs": 5}, seed=0)
    folder.stage(
        "read",
        config={},
        inputs=[images.fingerprint],
        compute=lambda at: write_image_set(at, images),
    )
    ranks = (np.arange(n) + 1) / n
    triggered = np.arange(n) >= n - n // 10
    columns = {
        "id": ids,
        "label": labels,
        "label_name": [names[i] for i in labels],
        "guide_label_name": [names[(i + 1) % len(names)] for i in labels],
        "guide_nll": ranks * 9,
        "early_nll": (1 - ranks) * 9,
        "guide_rank": ranks,
        "early_rank": ranks[::-1].copy(),
        "trigger_score": np.full(n, np.nan),
        "suspicion_score": ranks,
        "rank": n - np.arange(n),
        "is_clean": np.arange(n) < n // 2,
        "is_triggered": triggered,
        "is_mislabelled": np.arange(n) == n - 2,
    }
    write_table(path / "samples.parquet", columns, optional=["trigger_score"])
    data = {"location": "./data", "n": n, "classes": list(names), "unreadable": 3, "empty_classes": []}
    write_json(path / "summary.json", {"data": data} | run)
    return path
