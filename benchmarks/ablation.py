"""Ablations on the development rows (BadNets): suspicious models, and losses of the cure pass by pass.

    python benchmarks/ablation.py suspects [NAME]...   which suspicious model separates best per second
    python benchmarks/ablation.py photographs [NAME]... the same on photographs of 80 pixels, seen at 64
    python benchmarks/ablation.py detectors            trigger detector: second look, balance, steps
    python benchmarks/ablation.py losses               reference loss and ours, guide with and without scale
    python benchmarks/ablation.py picture              results/losses.png from the rows that are there

Each finished row is a JSON file in benchmarks/results/ablation; rows that are there are not computed again.
"""

import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from clipguard.data import ImageSource
from clipguard.data.decode import thumbnail
from clipguard.detection.early_model import EARLY_MODELS, early_model_scores
from clipguard.detection.entropy_map import EntropyMapConfig, entropy_map, split
from clipguard.detection.trigger_detector import trigger_scores
from clipguard.lab.benchmark.cells import CellRunner
from clipguard.lab.benchmark.judging import judged
from clipguard.lab.benchmark.machine import commit, machine
from clipguard.lab.evaluation import detection
from clipguard.mitigation.unlearning import REFERENCE, UnlearningConfig, trigger_augmented, unlearn
from clipguard.pipeline import DefenseConfig, scan
from clipguard.pipeline.repairing import inverted_triggers
from clipguard.pipeline.scanning import LARGEST_THUMBNAIL
from clipguard.runs import RunFolder, SourceInfo
from clipguard.seeds import Seed
from clipguard.types import ImageSet, Scores, Split
from works import RESULTS, works

FOLDER = RESULTS / "ablation"
PASSES = 3
MODELS = {name: model for name, model in EARLY_MODELS.items() if name != "reference"} | {
    "width-64": replace(EARLY_MODELS["reference"], runs=1)
}
Row = dict[str, Any]


def row(name: str, seed: int, compute: Callable[[], Row]) -> None:
    """Write the row unless it is there."""
    file = FOLDER / f"{name}.json"
    if file.exists():
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    command = f"python benchmarks/ablation.py {sys.argv[1]}"
    about = {"row": name, "seed": seed, "command": command, "commit": commit(), "machine": machine()}
    result = compute() | about
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(name, flush=True)


def suspects(names: list[str], file: str = "development") -> None:
    """Score the development rows with the suspicious models of these names, for BadNets and Blended."""
    for name in names:
        for work in works(file):
            attack = work.cell.attack.name
            kind = attack if file == "development" else f"photographs-{attack}"
            row(f"suspect-{kind}-{name}", work.cell.seed, partial(separation, work, name))


def thumbnails(data: ImageSet) -> ImageSet:
    """Return the data as the small nets see it."""
    h, w = (min(side, LARGEST_THUMBNAIL) for side in data.images.shape[1:3])
    return replace(data, images=np.stack([thumbnail(image, (h, w)) for image in data.images]))


def detectors() -> None:
    """Tell `triggered` from `clean` by each detector, for BadNets and Blended and for photographs."""
    for file in ("development", "development-photographs"):
        for work in works(file):
            name = f"detector-{'' if file == 'development' else 'photographs-'}{work.cell.attack.name}"
            row(name, work.cell.seed, partial(detected, work))


def detected(work: CellRunner) -> Row:
    """Return how many poisons and innocent samples each detector flags in one cell, and in what time."""
    data, truth = work.poisoned
    seed, seen = Seed(work.cell.seed), thumbnails(data)
    embeddings = work.guide.clip.embed_images(np.asarray(data.images))
    guide = work.guide.logits(embeddings, data.class_names)
    scores = early_model_scores(seen, guide, DefenseConfig().suspect, seed.child("suspect"))
    first = split(entropy_map(guide, scores, data.labels), data.labels, data.class_names, EntropyMapConfig())
    usual, nobody = DefenseConfig().detector, np.zeros(len(data), dtype=bool)
    recipe = replace(usual.probe.recipe, batch_size=64, lr=0.1)
    ways = {
        "default": (usual, embeddings),
        "one look": (replace(usual, second=0), embeddings),
        "not balanced": (usual, np.zeros_like(embeddings)),
        "half the steps": (
            replace(usual, probe=replace(usual.probe, recipe=recipe, fewest_steps=300)),
            embeddings,
        ),
    }
    found: Row = {"attack": work.cell.attack.name, "poisoned": int(truth.poisoned.sum())}
    for name, (detector, known) in ways.items():
        began = time.monotonic()
        flagged = trigger_scores(seen, first, known, nobody, detector, seed.child("detect"))
        flagged = flagged > detector.triggered
        innocent = np.bincount(data.labels[flagged & ~truth.poisoned], minlength=len(data.class_names))
        found[name] = {
            "poison": int((flagged & truth.poisoned).sum()),
            "innocent": int(innocent.sum()),
            "innocent_of_one_class": int(innocent.max()),
            "seconds": round(time.monotonic() - began, 1),
        }
    return found


def separation(work: CellRunner, name: str) -> Row:
    """Return how well one suspicious model separates one attack's poison, and in what time."""
    data, truth = work.poisoned
    guide = work.guide.logits(work.guide.clip.embed_images(np.asarray(data.images)), data.class_names)
    seen = thumbnails(data)
    began = time.monotonic()
    scores = early_model_scores(seen, guide, MODELS[name], Seed(work.cell.seed).child("ablation"))
    seconds = time.monotonic() - began
    entropy = entropy_map(guide, scores, data.labels)
    first = split(entropy, data.labels, data.class_names, EntropyMapConfig())
    found = detection(entropy, first, data, truth)
    return {**found, "seconds": round(seconds, 1), "attack": work.cell.attack.name}


def scanned(work: CellRunner) -> Any:
    """Return the scan of a cell."""
    data, _ = work.poisoned
    source = ImageSource.open((data.images, data.labels), classes=data.class_names)
    info = SourceInfo(
        kind=source.kind,
        location=work.name,
        fingerprint=source.fingerprint,
        n=len(source),
        class_names=source.class_names,
    )
    run = RunFolder.open(work.lab.cache / "runs" / work.name, info, {}, work.cell.seed)
    return scan(source, work.guide, run, DefenseConfig(seed=work.cell.seed))


def losses() -> None:
    """UnlearningConfig the development victim of BadNets in each way and write its rates after every pass."""
    work = works("development")[0]
    (data, _), test, model, found = work.poisoned, work.sets[1], work.victim[0], scanned(work)
    rates = partial(judged, test=test, tried=work.triggered_tests)
    triggers = inverted_triggers(found, DefenseConfig(seed=work.cell.seed))
    bare = replace(found.guide, scale=1.0)
    first = split(found.entropy, data.labels, data.class_names, EntropyMapConfig())
    bare_map = entropy_map(bare, suspect_of(found), data.labels)
    bare_first = split(bare_map, data.labels, data.class_names, EntropyMapConfig())
    ours = replace(UnlearningConfig(), recipe=replace(UnlearningConfig().recipe, epochs=PASSES))
    reference = REFERENCE
    guided = replace(ours, guide=0.1, temperature=1.0)
    ways: dict[str, tuple[UnlearningConfig, Split, Scores]] = {
        "ours": (ours, found.split, found.guide),
        "ours, no copies": (replace(ours, stamp=0.0), found.split, found.guide),
        "ours, guidance term": (guided, found.split, found.guide),
        "ours, guidance term, no logit scale": (guided, found.split, bare),
        "reference": (reference, bare_first, bare),
        "reference with logit scale": (reference, first, found.guide),
        "reference loss, our split": (reference, found.split, found.guide),
    }
    for name, (cure, part, guide) in ways.items():

        def compute(cure: UnlearningConfig = cure, part: Split = part, guide: Scores = guide) -> Row:
            cured, curve = copy.deepcopy(model), [rates(model)]
            seed = Seed(work.cell.seed).child("ablation")
            lesson = data, part, guide
            if triggers and cure.stamp > 0:
                lesson = trigger_augmented(*lesson, triggers, cure, seed.child("copies"))
            history = unlearn(cured, *lesson, cure, seed, on_epoch=lambda _: curve.append(rates(cured)))
            sizes = [
                a + b for a, b in zip(history.columns["clean"], history.columns["triggered"], strict=True)
            ]
            steps = [0.0]
            for size in sizes:
                steps.append(steps[-1] + -(-size // cure.recipe.batch_size))
            return {"curve": curve, "steps": steps, "cure": asdict(cure)}

        row("loss-" + name.replace(" ", "-").replace(",", ""), work.cell.seed, compute)


def suspect_of(found: Any) -> Scores:
    """Return the suspicious model's logits of a scan."""
    from clipguard.runs import read_array

    logits = read_array(found.stages["suspect"].path / "logits.npy")
    return Scores(logits=logits, scale=1.0, source="suspicious model")


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
    figure.suptitle("UnlearningConfig of BadNets (5 %), development rows, one seed")
    figure.tight_layout()
    figure.savefig(RESULTS / "losses.png", dpi=130)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["suspects", *chosen]:
            suspects(chosen or list(MODELS))
        case ["photographs", *chosen]:
            suspects(chosen or ["residual", "shallow"], "development-photographs")
        case ["detectors"]:
            detectors()
        case ["losses"]:
            losses()
        case ["picture"]:
            picture()
        case _:
            raise SystemExit(__doc__)
