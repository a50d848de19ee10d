"""Ablations on the development rows: early-training models and trigger detectors.

    python benchmarks/ablation.py early-models [NAME]...   early-training models: separation, seconds
    python benchmarks/ablation.py photographs [NAME]...    the same on photographs of 80 pixels, seen at 64
    python benchmarks/ablation.py detectors                trigger detector: second round, balance, steps

Reproduces the published ablations, and is needed for the next tables. Each finished row is a JSON file in
benchmarks/results/ablation and is not computed again.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from clipguard.data.decode import prepared
from clipguard.detection.early_model import EARLY_MODELS, early_model_scores
from clipguard.detection.entropy_map import EntropyMapConfig, entropy_map, first_partition, label_nll
from clipguard.detection.trigger_detector import trigger_scores
from clipguard.lab.benchmark.cells import CellRunner
from clipguard.lab.benchmark.machine import commit, machine
from clipguard.lab.benchmark.results import Row
from clipguard.lab.evaluation import detection
from clipguard.pipeline.config import DefenseConfig
from clipguard.seeds import Seed, Stream
from clipguard.types import ImageSet, Partition, Preprocessing, Scores
from runners import RESULTS, runners

FOLDER = RESULTS / "ablation"
LARGEST = 64
MODELS = {name: model for name, model in EARLY_MODELS.items() if name != "cgd"} | {
    "width-64": replace(EARLY_MODELS["cgd"], runs=1)
}


def row(name: str, seed: int, compute: Callable[[], Row]) -> None:
    """Write the row unless it is finished."""
    file = FOLDER / f"{name}.json"
    if file.exists():
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    command = f"python benchmarks/ablation.py {sys.argv[1]}"
    about = {"row": name, "seed": seed, "command": command, "commit": commit(), "machine": machine()}
    file.write_text(json.dumps(compute() | about, indent=1) + "\n")
    print(name, flush=True)


def early_models(names: list[str], file: str = "development") -> None:
    """Score the cells of a file with the early-training models of these names."""
    for name in names:
        for runner in runners(file):
            attack = runner.cell.attack.name
            kind = attack if file == "development" else f"photographs-{attack}"
            row(f"early-model-{kind}-{name}", runner.cell.seed, partial(separation, runner, name))


def separation(runner: CellRunner, name: str) -> Row:
    """Return how well one early-training model separates one attack's poison, and in what time."""
    data, truth = runner.poisoned
    guide, small = guide_scores(runner)[0], thumbnails(data)
    began = time.monotonic()
    scores = early_model_scores(small, guide, MODELS[name], Seed(runner.cell.seed).child("ablation"))
    seconds = time.monotonic() - began
    entropy = entropy_map(label_nll(guide, data.labels), label_nll(scores, data.labels))
    figures = detection(entropy, first_of(guide, scores, data), data, truth)
    return {**figures, "seconds": round(seconds, 1), "attack": runner.cell.attack.name}


def guide_scores(runner: CellRunner) -> tuple[Scores, np.ndarray]:
    """Return the guide's logits and embeddings of a cell's poisoned set."""
    data = runner.poisoned[0]
    embeddings = runner.guide.clip.embed_images(data.pixels)
    return runner.guide.logits(embeddings, data.class_names), embeddings


def first_of(guide: Scores, scores: Scores, data: ImageSet) -> Partition:
    """Return the partition by the entropy map alone."""
    entropy = entropy_map(label_nll(guide, data.labels), label_nll(scores, data.labels))
    return first_partition(entropy, data.labels, len(data.class_names), EntropyMapConfig())


def thumbnails(data: ImageSet) -> ImageSet:
    """Return the data as the small nets see it."""
    h, w = (min(side, LARGEST) for side in data.images.shape[1:3])
    view = Preprocessing(size=(h, w))
    return replace(data, images=np.stack([prepared(image, view) for image in data.pixels]))


def detectors() -> None:
    """Run each trigger detector for BadNets and Blended and for photographs."""
    for file in ("development", "development-photographs"):
        for runner in runners(file):
            name = f"detector-{'' if file == 'development' else 'photographs-'}{runner.cell.attack.name}"
            row(name, runner.cell.seed, partial(flagged_by_detectors, runner))


def flagged_by_detectors(runner: CellRunner) -> Row:
    """Return how many poisons and other samples each detector flags in one cell, and in what time."""
    data, truth = runner.poisoned
    seed, small = Seed(runner.cell.seed), thumbnails(data)
    guide, embeddings = guide_scores(runner)
    scores = early_model_scores(small, guide, DefenseConfig().early_model, seed.child(Stream.EARLY_MODEL))
    first = first_of(guide, scores, data)
    usual = DefenseConfig().trigger_detector
    half = replace(usual, net=replace(usual.net, batch_size=64, lr=0.1, fewest_steps=300))
    ways = {
        "default": (usual, embeddings),
        "one round": (replace(usual, refinements=0), embeddings),
        "not balanced": (usual, np.zeros_like(embeddings)),
        "half the steps": (half, embeddings),
    }
    figures: Row = {"attack": runner.cell.attack.name, "poisoned": int(truth.poisoned.sum())}
    for name, (detector, known) in ways.items():
        began = time.monotonic()
        probability = trigger_scores(small, first, known, detector, seed.child("detect")).probability
        flagged = probability > detector.flagged
        wrongly = np.bincount(data.labels[flagged & ~truth.poisoned], minlength=len(data.class_names))
        figures[name] = {
            "poison": int((flagged & truth.poisoned).sum()),
            "wrongly": int(wrongly.sum()),
            "wrongly_of_one_class": int(wrongly.max()),
            "seconds": round(time.monotonic() - began, 1),
        }
    return figures


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["early-models", *names]:
            early_models(names or list(MODELS))
        case ["photographs", *names]:
            early_models(names or ["residual", "shallow"], "development-photographs")
        case ["detectors"]:
            detectors()
        case _:
            raise SystemExit(__doc__)
