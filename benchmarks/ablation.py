"""Ablations on the development rows: early-training models, trigger detectors, losses of unlearning.

    python benchmarks/ablation.py early-models [NAME]...   early-training models: separation, seconds
    python benchmarks/ablation.py photographs [NAME]...    the same on photographs of 80 pixels, seen at 64
    python benchmarks/ablation.py detectors                trigger detector: second round, balance, steps
    python benchmarks/ablation.py losses                   reference loss and ours, with and without scale
    python benchmarks/ablation.py picture                  results/losses.png from the finished rows

Reproduces the published ablations, and is needed for the next tables. Each finished row is a JSON file in
benchmarks/results/ablation and is not computed again.
"""

import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from clipguard.data.decode import thumbnail
from clipguard.detection.early_model import EARLY_MODELS, early_model_scores
from clipguard.detection.entropy_map import EntropyMapConfig, entropy_map, split
from clipguard.detection.trigger_detector import trigger_scores
from clipguard.lab.benchmark.cells import CellRunner
from clipguard.lab.benchmark.machine import commit, machine
from clipguard.lab.benchmark.rates import rates_of
from clipguard.lab.benchmark.results import Row
from clipguard.lab.evaluation import detection
from clipguard.mitigation.unlearning import REFERENCE, UnlearningConfig, trigger_augmented, unlearn
from clipguard.pipeline import DefenseConfig, Scan, inverted_triggers
from clipguard.pipeline.scanning import LARGEST_THUMBNAIL
from clipguard.runs import read_array
from clipguard.seeds import Seed, Stream
from clipguard.types import ImageSet, Scores, Split
from runners import RESULTS, runners, scanned

FOLDER = RESULTS / "ablation"
PASSES = 3
MODELS = {name: model for name, model in EARLY_MODELS.items() if name != "reference"} | {
    "width-64": replace(EARLY_MODELS["reference"], runs=1)
}
Way = tuple[UnlearningConfig, Split, Scores]


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
    entropy = entropy_map(guide, scores, data.labels)
    figures = detection(entropy, first_split(guide, scores, data), data, truth)
    return {**figures, "seconds": round(seconds, 1), "attack": runner.cell.attack.name}


def guide_scores(runner: CellRunner) -> tuple[Scores, np.ndarray]:
    """Return the guide's logits and embeddings of a cell's poisoned set."""
    data = runner.poisoned[0]
    embeddings = runner.guide.clip.embed_images(np.asarray(data.images))
    return runner.guide.logits(embeddings, data.class_names), embeddings


def first_split(guide: Scores, scores: Scores, data: ImageSet) -> Split:
    """Return the partition by the entropy map alone."""
    entropy = entropy_map(guide, scores, data.labels)
    return split(entropy, data.labels, data.class_names, EntropyMapConfig())


def thumbnails(data: ImageSet) -> ImageSet:
    """Return the data as the small nets see it."""
    h, w = (min(side, LARGEST_THUMBNAIL) for side in data.images.shape[1:3])
    return replace(data, images=np.stack([thumbnail(image, (h, w)) for image in data.images]))


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
    scores = early_model_scores(small, guide, DefenseConfig().suspect, seed.child(Stream.EARLY_MODEL))
    first = first_split(guide, scores, data)
    usual, nobody = DefenseConfig().detector, np.zeros(len(data), dtype=bool)
    recipe = replace(usual.probe.recipe, batch_size=64, lr=0.1)
    half = replace(usual, probe=replace(usual.probe, recipe=recipe, fewest_steps=300))
    ways = {
        "default": (usual, embeddings),
        "one round": (replace(usual, second=0), embeddings),
        "not balanced": (usual, np.zeros_like(embeddings)),
        "half the steps": (half, embeddings),
    }
    figures: Row = {"attack": runner.cell.attack.name, "poisoned": int(truth.poisoned.sum())}
    for name, (detector, known) in ways.items():
        began = time.monotonic()
        scores_of_all = trigger_scores(small, first, known, nobody, detector, seed.child("detect"))
        flagged = scores_of_all > detector.triggered
        wrongly = np.bincount(data.labels[flagged & ~truth.poisoned], minlength=len(data.class_names))
        figures[name] = {
            "poison": int((flagged & truth.poisoned).sum()),
            "wrongly": int(wrongly.sum()),
            "wrongly_of_one_class": int(wrongly.max()),
            "seconds": round(time.monotonic() - began, 1),
        }
    return figures


def losses() -> None:
    """Repair the development victim of BadNets in each way and write its rates after every pass."""
    runner = runners("development")[0]
    config = DefenseConfig(seed=runner.cell.seed)
    scan = scanned(runner, runner.poisoned[0], config, runner.paths.cache / "runs" / runner.name)
    for name, way in ways_to_unlearn(scan).items():
        label = "loss-" + name.replace(" ", "-").replace(",", "")
        row(label, runner.cell.seed, partial(curve_of, runner, scan, config, way))


def ways_to_unlearn(scan: Scan) -> dict[str, Way]:
    """Return settings, partition and guide of each way."""
    data, guide = scan.data, scan.guide
    logits = read_array(scan.stages["suspect"].path / "logits.npy")
    early, bare = Scores(logits=logits, scale=1.0, source="early-training model"), replace(guide, scale=1.0)
    ours = replace(UnlearningConfig(), recipe=replace(UnlearningConfig().recipe, epochs=PASSES))
    guided = replace(ours, guide=0.1, temperature=1.0)
    return {
        "ours": (ours, scan.split, guide),
        "ours, no copies": (replace(ours, stamp=0.0), scan.split, guide),
        "ours, guidance term": (guided, scan.split, guide),
        "ours, guidance term, no logit scale": (guided, scan.split, bare),
        "reference": (REFERENCE, first_split(bare, early, data), bare),
        "reference with logit scale": (REFERENCE, first_split(guide, early, data), guide),
        "reference loss, our split": (REFERENCE, scan.split, guide),
    }


def curve_of(runner: CellRunner, scan: Scan, config: DefenseConfig, way: Way) -> Row:
    """Return the victim's rates after every pass of one way, and the steps until then."""
    unlearning, partition, guide = way
    rates = partial(rates_of, test=runner.sets[1], triggered_sets=runner.triggered_tests)
    repaired = copy.deepcopy(runner.victim.model)
    curve, seed = [rates(repaired)], Seed(config.seed).child("ablation")
    sets = runner.poisoned[0], partition, guide
    triggers = inverted_triggers(scan, config)
    if triggers and unlearning.stamp > 0:
        sets = trigger_augmented(*sets, triggers, unlearning, seed.child("copies"))
    history = unlearn(repaired, *sets, unlearning, seed, on_epoch=lambda _: curve.append(rates(repaired)))
    sizes = np.array(history.columns["clean"]) + np.array(history.columns["triggered"])
    steps = [0, *np.cumsum(-(-sizes // unlearning.recipe.batch_size)).tolist()]
    return {"curve": curve, "steps": steps, "unlearning": asdict(unlearning)}


def picture() -> None:
    """Draw accuracy and attack success over steps, one line a way."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharex=True)
    for file in sorted(FOLDER.glob("loss-*.json")):
        result = json.loads(file.read_text())
        for axis, rate in zip(axes, ("accuracy", "attack_success"), strict=True):
            values = [100 * point[rate] for point in result["curve"]]
            axis.plot(result["steps"], values, marker=".", label=file.stem[5:].replace("-", " "))
    axes[0].set(xlabel="steps", ylabel="clean accuracy, %")
    axes[1].set(xlabel="steps", ylabel="attack success, %", ylim=(0, 100))
    # Linear up to ten per cent, where the good ones are.
    axes[1].set_yscale("symlog", linthresh=10)
    axes[1].set_yticks((0, 2, 4, 6, 8, 10, 30, 100), ("0", "2", "4", "6", "8", "10", "30", "100"))
    axes[0].legend(fontsize=7)
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.suptitle("Unlearning of BadNets (5 %), development rows, one seed")
    figure.tight_layout()
    figure.savefig(RESULTS / "losses.png", dpi=130)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["early-models", *names]:
            early_models(names or list(MODELS))
        case ["photographs", *names]:
            early_models(names or ["residual", "shallow"], "development-photographs")
        case ["detectors"]:
            detectors()
        case ["losses"]:
            losses()
        case ["picture"]:
            picture()
        case _:
            raise SystemExit(__doc__)
