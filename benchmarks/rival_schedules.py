"""NAD and I-BAU by clean samples and by steps: what their published schedules need on a narrow net.

    python benchmarks/rival_schedules.py     -> results/ablation/rival-schedules.json

8,000 development rows of CIFAR-10 and BadNets (`development.toml`). Clean samples are unpoisoned training
rows: 5 % of the data, as in the benchmark, or as many as the sources had. *Steps* repeats the passes over few
samples until they are as many steps as the published passes over 2,500.
"""

import json
from dataclasses import asdict, replace

import numpy as np

from clipguard.compute.device import CPU, computing_on
from clipguard.compute.threads import granted_threads, one_thread
from clipguard.defenses import clean_slice
from clipguard.defenses.clean_slice import HELD_OUT
from clipguard.defenses.rivals.clean_start import CleanDataSettings
from clipguard.defenses.rivals.distillation import AttentionDistillation
from clipguard.defenses.rivals.hypergradient import ImplicitUnlearning
from clipguard.lab.benchmark.cells import CellRunner
from clipguard.lab.benchmark.machine import commit, machine
from clipguard.lab.benchmark.rates import rates_of
from clipguard.seeds import Seed
from runners import RESULTS, runners

FILE = RESULTS / "ablation" / "rival-schedules.json"
PUBLISHED = 2500
"""Clean samples that the sources learn from: 5 % of CIFAR-10."""


def main() -> None:
    """Repair the victim by each schedule, and write and print the rates."""
    runner = next(r for r in runners("development") if r.cell.attack.name == "badnets")
    few = round((1 - HELD_OUT) * clean_slice.SHARE * len(runner.poisoned[0]))
    repeats = PUBLISHED / few
    nad, ibau = AttentionDistillation(origin="given"), ImplicitUnlearning(origin="given")
    schedules = {
        "victim": (0, None),
        "nad": (few, nad),
        "nad, published steps": (few, _longer(nad, repeats)),
        "nad, a tenth of the rates": (few, replace(nad, first_lr=0.01, lr=0.001)),
        "nad, published steps at a tenth of the rates": (
            few,
            replace(_longer(nad, repeats), first_lr=0.01, lr=0.001),
        ),
        "nad, published samples": (PUBLISHED, nad),
        "nad, published samples at a tenth of the rates": (PUBLISHED, replace(nad, first_lr=0.01, lr=0.001)),
        "i-bau": (few, ibau),
        "i-bau, published steps": (few, replace(ibau, rounds=round(repeats * ibau.rounds))),
        "i-bau, a tenth of the rate": (few, replace(ibau, lr=1e-4)),
        "i-bau, published samples": (PUBLISHED, ibau),
    }
    results = json.loads(FILE.read_text())["results"] if FILE.exists() else {}
    for title, (count, defense) in schedules.items():
        if title in results:
            continue
        row = runner.undefended() if defense is None else _repaired(runner, defense, count)
        results[title] = {"samples": count, "settings": _settings(defense), **row}
        print(title, {k: v for k, v in row.items() if k != "settings"}, flush=True)
        about = {
            "command": "python benchmarks/rival_schedules.py",
            "commit": commit(),
            "machine": machine(),
        }
        FILE.write_text(json.dumps({**about, "results": results}, indent=1) + "\n")


def _longer(nad: AttentionDistillation, repeats: float) -> AttentionDistillation:
    """Return NAD with each of its phases so many times longer."""
    return replace(
        nad,
        teacher_epochs=round(repeats * nad.teacher_epochs),
        epochs=round(repeats * nad.epochs),
        first_epochs=round(repeats * nad.first_epochs),
    )


def _settings(defense: CleanDataSettings | None) -> dict[str, object]:
    return {} if defense is None else {k: v for k, v in asdict(defense).items() if k != "config"}


def _repaired(
    runner: CellRunner, defense: AttentionDistillation | ImplicitUnlearning, count: int
) -> dict[str, object]:
    """Return the rates after a defence that learns from so many unpoisoned rows."""
    data, truth = runner.poisoned
    order = Seed(0).child("clean rows").generator().permutation(np.flatnonzero(~truth.poisoned))
    slice_size = round(count / (1 - HELD_OUT))
    usual, clean_slice.SHARE = clean_slice.SHARE, slice_size / len(data)  # type: ignore[misc]
    try:
        case = replace(runner.case(), clean=data.take(np.sort(order[:slice_size])))
        repaired = defense.defend(case)
    finally:
        clean_slice.SHARE = usual  # type: ignore[misc]
    rates = rates_of(repaired.model, runner.sets[1], runner.triggered_tests)
    return {**rates, "seconds": repaired.seconds}


if __name__ == "__main__":
    with computing_on(CPU), granted_threads(None), one_thread():
        main()
