"""What the strength of unlearning trades where a cell misses its goal: rates after each pass, by weight.

    python benchmarks/frontier.py              the cell of imagenette.toml -> results/imagenette/frontier.json
    python benchmarks/frontier.py picture      results/imagenette/frontier.png from that file

Drawn to show what the miss would cost to mend. The default was not chosen on it.
"""

import copy
import json
import sys
from dataclasses import asdict
from functools import partial
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from clipguard.data import ImageSource
from clipguard.lab.benchmark.judging import judged
from clipguard.lab.benchmark.machine import commit, machine
from clipguard.mitigation.unlearning import UnlearningConfig, trigger_augmented, unlearn
from clipguard.pipeline import DefenseConfig, inverted_triggers, learnable, scan
from clipguard.runs import RunFolder, SourceInfo
from clipguard.seeds import Seed
from works import RESULTS, works

FILE = RESULTS / "imagenette" / "frontier.json"
WEIGHTS = (1.0, 0.5, 0.3, 0.1)
RATES = ("accuracy", "attack_success", "target_recall", "robust_accuracy")


def frontier() -> None:
    """UnlearningConfig the victim with each weight and note its rates after every pass; what is there stays."""
    done: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {"curves": {}}
    work = works("imagenette")[0]
    (data, _), model = work.poisoned, work.victim[0]
    source = ImageSource.open((data.images, data.labels), classes=data.class_names)
    info = SourceInfo(
        kind=source.kind,
        location=work.name,
        fingerprint=source.fingerprint,
        n=len(source),
        class_names=source.class_names,
    )
    plan = DefenseConfig(seed=work.cell.seed)
    run = RunFolder.open(work.lab.cache / "runs" / work.name, info, {}, plan.seed)
    found = scan(source, work.guide, run, plan, model_size=data.images.shape[1:3])
    triggers, lesson = inverted_triggers(found, plan), learnable(found)
    rates = partial(judged, test=work.sets[1], tried=work.triggered_tests)
    for weight in WEIGHTS:
        if str(weight) in done["curves"]:
            continue
        cure, seed = UnlearningConfig(unlearn=weight), Seed(plan.seed).child("cure")
        cured, curve = copy.deepcopy(model), [rates(model)]
        longer = trigger_augmented(*lesson, triggers, cure, seed.child("copies"))
        unlearn(cured, *longer, cure, seed, on_epoch=lambda _, cured=cured, c=curve: c.append(rates(cured)))
        done["curves"][str(weight)] = [{name: point[name] for name in RATES} for point in curve]
        about = {"command": "python benchmarks/frontier.py", "commit": commit(), "machine": machine()}
        done |= about | {"seed": plan.seed, "cure": asdict(UnlearningConfig())}
        FILE.write_text(json.dumps(done, indent=1) + "\n")
        print(weight, done["curves"][str(weight)][-1], flush=True)


def picture() -> None:
    """Draw attack success against accuracy and against target recall, a line a weight, a point a pass."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    curves = json.loads(FILE.read_text())["curves"]
    for weight, curve in sorted(curves.items(), key=lambda item: float(item[0])):
        for axis, rate in zip(axes, ("accuracy", "target_recall"), strict=True):
            x = [100 * point[rate] for point in curve[1:]]
            y = [100 * point["attack_success"] for point in curve[1:]]
            axis.plot(x, y, marker=".", label=f"unlearning weight {weight}")
            axis.annotate("last pass", (x[-1], y[-1]), fontsize=6)
    before = next(iter(curves.values()))[0]
    axes[0].axvline(100 * before["accuracy"] - 0.3, color="grey", linestyle=":")
    axes[1].axvline(100 * before["target_recall"] - 2, color="grey", linestyle=":")
    axes[0].set(xlabel="clean accuracy, % (dotted: least allowed)", ylabel="attack success, %")
    axes[1].set(xlabel="target recall, % (dotted: least allowed)")
    axes[0].legend(fontsize=7)
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.suptitle("Imagenette at 80 pixels, BadNets 5 %, one seed: rates after each pass of the cure")
    figure.tight_layout()
    figure.savefig(FILE.with_suffix(".png"), dpi=130)


if __name__ == "__main__":
    match sys.argv[1:]:
        case []:
            frontier()
        case ["picture"]:
            picture()
        case _:
            raise SystemExit(__doc__)
