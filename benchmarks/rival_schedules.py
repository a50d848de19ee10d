"""NAD and I-BAU by rates and passes: which schedules a narrow net bears.

    python benchmarks/rival_schedules.py [ROW]...     -> results/ablation/rival-schedules.json

8,000 development rows of CIFAR-10 and BadNets (`development.toml`). Clean samples are unpoisoned training
rows: 5 % of the data, as in the benchmark, or as many as the sources had. *Passes* are as published, or
repeated until as many samples are seen as in the source. Rows are computed that are named and not there yet.
Those of the authors' own schedules are of an earlier commit, which stands in each row.
"""

import json
import sys
from dataclasses import asdict, replace

import numpy as np

from clipguard.compute.device import CPU, computing_on
from clipguard.compute.threads import granted_threads, one_thread
from clipguard.defenses import clean_slice
from clipguard.defenses.clean_slice import HELD_OUT
from clipguard.defenses.rivals.clean_start import PUBLISHED_SAMPLES, CleanDataSettings
from clipguard.defenses.rivals.distillation import AttentionDistillation
from clipguard.defenses.rivals.hypergradient import ImplicitUnlearning
from clipguard.lab.benchmark.cells import CellRunner
from clipguard.lab.benchmark.machine import commit, machine
from clipguard.lab.benchmark.rates import rates_of
from clipguard.seeds import Seed
from runners import RESULTS, runners

FILE = RESULTS / "ablation" / "rival-schedules.json"


def main() -> None:
    """Repair the victim by each schedule, and write and print the rates."""
    runner = next(r for r in runners("development") if r.cell.attack.name == "badnets")
    few = round((1 - HELD_OUT) * clean_slice.SHARE * len(runner.poisoned[0]))
    nad, ibau = AttentionDistillation(origin="given"), ImplicitUnlearning(origin="given")
    schedules: dict[str, tuple[int, AttentionDistillation | ImplicitUnlearning | None]] = {
        "victim": (0, None),
        "nad, published passes": (few, replace(nad, published_samples=0)),
        "nad": (few, nad),
        "nad, ten times the rate": (few, replace(nad, lr=0.1)),
        "nad, published samples": (PUBLISHED_SAMPLES, nad),
        "i-bau, published passes": (few, replace(ibau, published_samples=0)),
        "i-bau": (few, ibau),
        "i-bau, ten times the rate": (few, replace(ibau, lr=1e-3)),
        "i-bau, published samples": (PUBLISHED_SAMPLES, ibau),
    }
    chosen = sys.argv[1:] or list(schedules)
    if unknown := set(chosen) - set(schedules):
        raise SystemExit(f"no row {', '.join(sorted(unknown))}: choose of {', '.join(schedules)}")
    results = json.loads(FILE.read_text())["results"] if FILE.exists() else {}
    for title in chosen:
        if title in results:
            continue
        count, defense = schedules[title]
        row = runner.undefended() if defense is None else _repaired(runner, defense, count)
        results[title] = {"samples": count, "settings": _settings(defense), **row}
        results[title] |= {"commit": commit(), "machine": machine()}
        print(title, f"{row['accuracy']:.2%}", f"{row['attack_success']:.2%}", flush=True)
        about = {"command": "python benchmarks/rival_schedules.py", "results": results}
        FILE.write_text(json.dumps(about, indent=1) + "\n")


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
