"""Ablations on the development rows (BadNets): suspicious models, and losses of the cure pass by pass.

    python benchmarks/ablation.py suspects      which suspicious model separates best per second
    python benchmarks/ablation.py losses        reference loss and ours, guide with and without logit scale
    python benchmarks/ablation.py picture       results/losses.png from the rows that are there

Each finished row is a JSON file in benchmarks/results/ablation; rows that are there are not computed again.
"""

import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from clipguard.entropy import SplitRule, entropy_map, split
from clipguard.evaluate import detection
from clipguard.guide import ClipGuide
from clipguard.pipeline import Plan, scan
from clipguard.seeds import Seed
from clipguard.sources import ImageSource
from clipguard.store import RunFolder, SourceInfo
from clipguard.suspect import SUSPECTS, suspect_scores
from clipguard.types import Scores, Split
from clipguard.unlearn import REFERENCE, Cure, unlearn
from protocol import CACHE, DEVELOPMENT, Cell, figures, victim
from table import commit, machine

RESULTS = Path(__file__).resolve().parent / "results" / "ablation"
SEED = 100
PASSES = 3
Row = dict[str, Any]


def row(name: str, compute: Callable[[], Row]) -> None:
    """Write the row unless it is there."""
    file = RESULTS / f"{name}.json"
    if file.exists():
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    result = compute() | {"row": name, "seed": SEED, "commit": commit(), "machine": machine()}
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(name, flush=True)


def suspects() -> None:
    """Score the development rows with each suspicious model, for BadNets and Blended."""
    for attack, seed in (("badnets", SEED), ("blended", SEED + 1)):
        for name in ("shallow", "compact", "out-of-fold"):
            row(f"suspect-{attack}-{name}", partial(separation, attack, seed, name))


def separation(attack: str, seed: int, name: str) -> Row:
    """Return how well one suspicious model separates one attack's poison, and in what time."""
    data, truth = Cell(attack=attack, seed=seed, rows=DEVELOPMENT).poisoned()
    guide = scanned(attack, seed).guide
    began = time.monotonic()
    scores = suspect_scores(data, SUSPECTS[name], Seed(seed).child("ablation"))
    seconds = time.monotonic() - began
    entropy = entropy_map(guide, scores, data.labels)
    first = split(entropy, data.labels, data.class_names, SplitRule())
    return {**detection(entropy, first, truth), "seconds": round(seconds, 1), "attack": attack}


def scanned(attack: str, seed: int) -> Any:
    """Return the scan of a development cell."""
    data, _ = Cell(attack=attack, seed=seed, rows=DEVELOPMENT).poisoned()
    source = ImageSource.open((data.images, data.labels), classes=data.class_names)
    info = SourceInfo(
        kind=source.kind,
        location=attack,
        fingerprint=source.fingerprint,
        n=len(source),
        class_names=source.class_names,
    )
    run = RunFolder.open(CACHE / "runs" / f"development-{attack}-{seed}", info, {}, seed)
    return scan(source, ClipGuide("mini"), run, Plan(seed=seed))


def losses() -> None:
    """Cure the development victim in each way and write its rates after every pass."""
    cell = Cell(attack="badnets", seed=SEED, rows=DEVELOPMENT)
    data, _ = cell.poisoned()
    test, (model, _, _), found = cell.test(), victim(cell), scanned("badnets", SEED)
    bare = replace(found.guide, scale=1.0)
    first = split(found.entropy, data.labels, data.class_names, SplitRule())
    bare_map = entropy_map(bare, suspect_of(found), data.labels)
    bare_first = split(bare_map, data.labels, data.class_names, SplitRule())
    ours = replace(Cure(), recipe=replace(Cure().recipe, epochs=PASSES))
    reference = replace(REFERENCE, recipe=replace(REFERENCE.recipe, epochs=PASSES))
    guided = replace(ours, guide=0.1, temperature=1.0)
    ways: dict[str, tuple[Cure, Split, Scores]] = {
        "ours": (ours, found.split, found.guide),
        "ours, guidance term": (guided, found.split, found.guide),
        "ours, guidance term, no logit scale": (guided, found.split, bare),
        "reference": (reference, bare_first, bare),
        "reference with logit scale": (reference, first, found.guide),
        "reference loss, our split": (reference, found.split, found.guide),
    }
    for name, (cure, part, guide) in ways.items():

        def compute(cure: Cure = cure, part: Split = part, guide: Scores = guide) -> Row:
            cured, curve = copy.deepcopy(model), [figures(model, cell, test)]
            history = unlearn(
                cured,
                data,
                part,
                guide,
                cure,
                Seed(SEED).child("ablation"),
                on_epoch=lambda _: curve.append(figures(cured, cell, test)),
            )
            sizes = [
                a + b for a, b in zip(history.columns["clean"], history.columns["triggered"], strict=True)
            ]
            steps = [0.0]
            for size in sizes:
                steps.append(steps[-1] + -(-size // cure.recipe.batch_size))
            return {"curve": curve, "steps": steps, "cure": asdict(cure)}

        row("loss-" + name.replace(" ", "-").replace(",", ""), compute)


def suspect_of(found: Any) -> Scores:
    """Return the suspicious model's logits of a scan."""
    from clipguard.store import read_array

    logits = read_array(found.stages["suspect"].path / "logits.npy")
    return Scores(logits=logits, scale=1.0, source="suspicious model")


def picture() -> None:
    """Draw accuracy and attack success over steps, one line a way."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharex=True)
    for file in sorted(RESULTS.glob("loss-*.json")):
        result = json.loads(file.read_text())
        for axis, rate in zip(axes, ("accuracy", "attack_success"), strict=True):
            values = [100 * point[rate] for point in result["curve"]]
            axis.plot(result["steps"], values, marker=".", label=file.stem[5:].replace("-", " "))
    axes[0].set(xlabel="steps", ylabel="clean accuracy, %")
    axes[1].set(xlabel="steps", ylabel="attack success, %", yscale="symlog", ylim=(0, 110))
    axes[0].legend(fontsize=7)
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.suptitle("Cure of BadNets (5 %), development rows, one seed")
    figure.tight_layout()
    figure.savefig(RESULTS.parent / "losses.png", dpi=130)


if __name__ == "__main__":
    {"suspects": suspects, "losses": losses, "picture": picture}[sys.argv[1]]()
