"""NAD and I-BAU by rates and passes: which schedules a narrow net bears.

    python benchmarks/rival_schedules.py [ROW]...     -> results/ablation/rival-schedules.json

8,000 development rows of CIFAR-10 and BadNets (`development.toml`), seed 100. Clean samples are unpoisoned
training rows, 5 % of the data. *Passes* are as published, or repeated until as many samples are seen as in
the source. Rows are computed that are named and not there yet. Those of the authors' own schedules are of an
earlier commit, which stands in each row.
"""

import json
import sys
from dataclasses import asdict, replace

import numpy as np

from clipguard.compute.device import CPU, computing_on
from clipguard.compute.threads import granted_threads, one_thread
from clipguard.defenses.clean_slice import SHARE
from clipguard.defenses.rivals.clean_start import CleanDataSettings
from clipguard.defenses.rivals.distillation import AttentionDistillation
from clipguard.defenses.rivals.hypergradient import ImplicitUnlearning
from clipguard.lab.benchmark.cells import CellRunner
from clipguard.lab.benchmark.machine import commit, machine
from clipguard.lab.benchmark.rates import rates_of
from clipguard.seeds import Seed
from runners import RESULTS, runners

CleanDefense = AttentionDistillation | ImplicitUnlearning

FILE = RESULTS / "ablation" / "rival-schedules.json"


def main() -> None:
    """Repair the victim by each schedule, and write and print the rates."""
    runner = next(r for r in runners("development") if r.cell.attack.name == "badnets")
    nad, ibau = AttentionDistillation(origin="given"), ImplicitUnlearning(origin="given")
    schedules: dict[str, CleanDefense | None] = {
        "victim": None,
        "nad, published passes": replace(nad, published_samples=0),
        "nad": nad,
        "nad, ten times the rate": replace(nad, lr=0.1),
        "i-bau, published passes": replace(ibau, published_samples=0),
        "i-bau": ibau,
        "i-bau, ten times the rate": replace(ibau, lr=1e-3),
    }
    chosen = sys.argv[1:] or list(schedules)
    if unknown := set(chosen) - set(schedules):
        raise SystemExit(f"no row {', '.join(sorted(unknown))}: choose of {', '.join(schedules)}")
    results = json.loads(FILE.read_text())["results"] if FILE.exists() else {}
    for title in chosen:
        if title in results:
            continue
        defense = schedules[title]
        row = runner.undefended() if defense is None else _repaired(runner, defense)
        results[title] = {"settings": _settings(defense), **row}
        results[title] |= {"commit": commit(), "machine": machine()}
        print(title, f"{row['accuracy']:.2%}", f"{row['attack_success']:.2%}", flush=True)
        about = {"command": "python benchmarks/rival_schedules.py", "results": results}
        FILE.write_text(json.dumps(about, indent=1) + "\n")


def _settings(defense: CleanDataSettings | None) -> dict[str, object]:
    return {} if defense is None else {k: v for k, v in asdict(defense).items() if k != "config"}


def _repaired(runner: CellRunner, defense: CleanDefense) -> dict[str, object]:
    """Return the rates after a defence whose clean samples are unpoisoned rows."""
    data, truth = runner.poisoned
    order = Seed(0).child("clean rows").generator().permutation(np.flatnonzero(~truth.poisoned))
    case = replace(runner.case(), clean=data.take(np.sort(order[: round(SHARE * len(data))])))
    repaired = defense.defend(case)
    rates = rates_of(repaired.model, runner.sets[1], runner.triggered_tests)
    return {**rates, "seconds": repaired.seconds}


if __name__ == "__main__":
    with computing_on(CPU), granted_threads(None), one_thread():
        main()
