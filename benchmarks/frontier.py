"""Rates after each pass of unlearning, by its weight, for a cell that misses its goal.

    python benchmarks/frontier.py              the cell of imagenette.toml -> results/imagenette/frontier.json
    python benchmarks/frontier.py picture      results/imagenette/frontier.png from that file

Reproduces the published `imagenette/frontier.png`. The default weight was not chosen on it.
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

from clipguard.lab.benchmark.machine import commit, machine
from clipguard.lab.benchmark.rates import rates_of
from clipguard.mitigation.unlearning import UnlearningConfig, trigger_augmented, unlearn
from clipguard.pipeline import DefenseConfig, inverted_triggers, learnable
from clipguard.seeds import Seed, Stream
from runners import RESULTS, runners, scanned

FILE = RESULTS / "imagenette" / "frontier.json"
WEIGHTS = (1.0, 0.5, 0.3, 0.1)
RATES = ("accuracy", "attack_success", "target_recall", "robust_accuracy")


def frontier() -> None:
    """Unlearn with each weight and note the victim's rates after every pass; finished weights are kept."""
    results: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {"curves": {}}
    runner = runners("imagenette")[0]
    model, config = runner.victim.model, DefenseConfig(seed=runner.cell.seed)
    scan = scanned(runner, runner.poisoned[0], config, runner.paths.cache / "runs" / runner.name)
    triggers, sets = inverted_triggers(scan, config), learnable(scan)
    rates = partial(rates_of, test=runner.sets[1], triggered_sets=runner.triggered_tests)
    for weight in WEIGHTS:
        if str(weight) in results["curves"]:
            continue
        unlearning, seed = UnlearningConfig(unlearn=weight), Seed(config.seed).child(Stream.UNLEARNING)
        repaired, curve = copy.deepcopy(model), [rates(model)]
        augmented = trigger_augmented(*sets, triggers, unlearning, seed.child("copies"))

        def note(_: int, repaired: Any = repaired, curve: list[Any] = curve) -> None:
            curve.append(rates(repaired))

        unlearn(repaired, *augmented, unlearning, seed, on_epoch=note)
        results["curves"][str(weight)] = [{name: point[name] for name in RATES} for point in curve]
        about = {"command": "python benchmarks/frontier.py", "commit": commit(), "machine": machine()}
        results |= about | {"seed": config.seed, "unlearning": asdict(UnlearningConfig())}
        FILE.parent.mkdir(parents=True, exist_ok=True)
        FILE.write_text(json.dumps(results, indent=1) + "\n")
        print(weight, results["curves"][str(weight)][-1], flush=True)


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
    figure.suptitle("Imagenette at 80 pixels, BadNets 5 %, one seed: rates after each pass of unlearning")
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
