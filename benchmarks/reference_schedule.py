"""Seconds of CGD's schedule beside ours, on the same data, guide and victim of width 64.

    python benchmarks/reference_schedule.py [--steps 100] [--rows 0:12000]

Both are timed with the stages of this package. A stage whose nets have width 64 is timed over some steps, and
extrapolated to all of them. Our scan is run whole. CGD: three early-training runs of width 64 and their
scores, ten passes of unlearning over all samples, as its code makes them. Ours: the scan as it is, then the
most that a repair can take: every rate of the range test, and three passes over all samples and over the
copies with each reconstructed trigger, scored in between. The guide's pass is the same in both and is given
by itself. The results are written to benchmarks/results/reference-schedule.json.
"""

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from clipguard.clip.zero_shot import guide_from_name
from clipguard.compute.inference import classifier_logits
from clipguard.compute.training import Recipe, cross_entropy, fit
from clipguard.data import ImageSource
from clipguard.data.decode import read_images
from clipguard.detection.early_model import EARLY_MODELS
from clipguard.lab.attacks import attack_named
from clipguard.lab.benchmark.machine import commit, machine
from clipguard.mitigation.rate import LADDER, STEPS
from clipguard.mitigation.unlearning import CGD, UnlearningConfig
from clipguard.models.spec import ModelSpec, Normalized, build
from clipguard.pipeline.config import DefenseConfig
from clipguard.pipeline.defender import Defender
from clipguard.seeds import Seed
from clipguard.types import ImageSet, Preprocessing
from runners import RESULTS, SHARED

SCORED = 1000
"""Images whose scoring is timed."""


def main() -> None:
    """Time both schedules."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100, help="steps that are timed of each training")
    parser.add_argument("--rows", default="0:12000")
    options = parser.parse_args()
    first, end = map(int, options.rows.split(":"))
    source = ImageSource.open(SHARED / "cifar10" / "train.parquet", rows=(first, end))
    clean = read_images(source, Preprocessing(size=(32, 32)))[0]
    data, _ = attack_named("badnets", rate=0.05).poison(clean, Seed(0).child("attack"))
    victim = width_64(data)
    ours, sizes = our_scan(data)
    ours |= our_repair(victim, data, sizes, options.steps)
    theirs = cgd(victim, data, options.steps)
    guide = ours.pop("embeddings")
    scan = sum(value for name, value in ours.items() if "extrapolated" not in name)
    results = {
        "guide pass, the same for both": guide,
        "cgd": theirs,
        "clipguard": ours,
        "scan, times faster": (theirs["early models"] + guide) / (scan + guide),
        "whole defence, times faster": (sum(theirs.values()) + guide) / (sum(ours.values()) + guide),
        "rows": [first, end],
        "timed steps": options.steps,
        "commit": commit(),
        "machine": machine(),
    }
    path = RESULTS / "reference-schedule.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


def width_64(data: ImageSet) -> Normalized:
    """Return an untrained victim: its steps take as long as a trained one's."""
    spec = ModelSpec.sized(
        architecture="preactresnet18-64", num_classes=len(data.class_names), input_size=(32, 32)
    )
    return build(spec, Seed(0))


def cgd(victim: Normalized, data: ImageSet, steps: int) -> dict[str, float]:
    """Return the seconds of CGD's stages."""
    early = EARLY_MODELS["cgd"]
    net = width_64(data)
    training = trained(net, data, early.recipe(len(data)), len(data), steps)
    return {
        "early models": early.runs * (training + scoring_seconds(net, data)),
        "unlearning": trained(victim, data, CGD.recipe, len(data), steps),
    }


def our_repair(victim: Normalized, data: ImageSet, sizes: dict[str, int], steps: int) -> dict[str, float]:
    """Return the most seconds that our repair can take."""
    config, scoring = UnlearningConfig(), scoring_seconds(victim, data)
    copies = round(config.augment * sizes["clean"]) * sizes["triggers"]
    step = step_seconds(victim, data, config.recipe, steps)
    batches = math.ceil((len(data) + copies) / config.recipe.batch_size)
    return {
        "range test (extrapolated, all rates)": len(LADDER) * (STEPS * step + scoring) + scoring,
        "unlearning (extrapolated)": config.recipe.epochs * (batches * step + scoring),
    }


def scoring_seconds(net: Normalized, data: ImageSet) -> float:
    """Return the seconds of one pass of inference over all samples."""
    began = time.monotonic()
    classifier_logits(net, data.images[:SCORED])
    return (time.monotonic() - began) * len(data) / SCORED


def trained(net: Normalized, data: ImageSet, recipe: Recipe, rows: int, steps: int) -> float:
    """Return the seconds of a whole training on so many rows, from some steps."""
    return recipe.epochs * math.ceil(rows / recipe.batch_size) * step_seconds(net, data, recipe, steps)


def step_seconds(net: Normalized, data: ImageSet, recipe: Recipe, steps: int) -> float:
    """Return the seconds of one step."""
    rows = np.resize(np.arange(len(data)), steps * recipe.batch_size)
    done = fit(net, data.images, rows, cross_entropy(data.labels.copy()), replace(recipe, epochs=1), Seed(0))
    return done.seconds / steps


def our_scan(data: ImageSet) -> tuple[dict[str, float], dict[str, int]]:
    """Return the seconds of each stage of a scan without canaries, and how much a repair has to learn."""
    with TemporaryDirectory() as folder:
        config = DefenseConfig(power=0)
        defender = Defender(guide_from_name("mini"), Path(folder) / "run", config=config, quality=False)
        defender.scan(ImageSource.open((data.pixels, data.labels), classes=data.class_names))
        seconds = {name: stage.seconds for name, stage in defender.stages_.items()}
        partition = defender.partition_
    return seconds, {"clean": int(partition.clean.sum()), "triggers": len(defender.triggers_)}


if __name__ == "__main__":
    main()
