"""One cell of the table, resumable row by row: no defence, oracle, clipguard, fine-tuning control, retrain.

    python benchmarks/table.py table:badnets:0 table:sig:0          cells, without the retrain row
    python benchmarks/table.py --retrain table:badnets:0            with it

Each finished row is a JSON file in benchmarks/results/cells; `report_table.py` makes the tables from them.
"""

import argparse
import copy
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipguard.defender import Defender
from clipguard.evaluate import detection
from clipguard.guide import ClipGuide
from clipguard.models import Normalized
from clipguard.pipeline import Plan
from clipguard.seeds import Seed
from clipguard.sources import ImageSource
from clipguard.training import cross_entropy, fit
from protocol import CACHE, PROTOCOLS, VICTIM, Cell, figures, trained, victim

RESULTS = Path(__file__).resolve().parent / "results" / "cells"
Row = dict[str, Any]


def commit() -> str:
    """Return the commit of the working tree, with a mark if it has changes."""
    return subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def machine() -> str:
    """Return what the seconds depend on."""
    cpu = next(
        (
            s.split(":")[1].strip()
            for s in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in s
        ),
        "",
    )
    return f"{platform.machine()}, {cpu}, {torch.get_num_threads()} threads, torch {torch.__version__}"


class Bench:
    """Computes the rows of one cell, each once."""

    def __init__(self, name: str) -> None:
        protocol, attack, seed = name.split(":")
        self.name = name
        self.cell = Cell(attack=attack, seed=int(seed), rows=PROTOCOLS[protocol])
        # One oracle for all seeds: without poison, only the training's own seed would differ.
        self.clean_cell = replace(self.cell, attack="none", seed=0)
        self.folder = RESULTS / f"{protocol}-{attack}-{seed}"
        self.test = self.cell.test()

    def row(self, name: str, compute: Callable[[], Row]) -> None:
        """Write the row unless it is there."""
        file = self.folder / f"{name}.json"
        if file.exists():
            return
        began = time.monotonic()
        row = compute()
        row |= {
            "row": name,
            "cell": self.name,
            "seed": self.cell.seed,
            "wall_seconds": round(time.monotonic() - began, 1),
            "command": f"python benchmarks/table.py {self.name}",
            "commit": commit(),
            "machine": machine(),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(row, indent=1) + "\n")
        part.rename(file)
        print(
            json.dumps({key: row.get(key) for key in ("cell", "row", "accuracy", "attack_success")}),
            flush=True,
        )

    def judged(self, model: Normalized) -> Row:
        """Return the model's rates, measured with this cell's trigger."""
        return figures(model, self.cell, self.test)

    def undefended(self) -> Row:
        """Return the victim's row."""
        model, _, about = victim(self.cell)
        return {**self.judged(model), "train_seconds": about["seconds"]}

    def oracle(self) -> Row:
        """Return the row of the same recipe and seed without the poison."""
        return self.judged(victim(self.clean_cell)[0])

    def defended(self) -> tuple[Defender, Any, Any]:
        """Return the fitted defender of this cell; finished stages come from its run folder."""
        data, truth = self.cell.poisoned()
        model, spec, _ = victim(self.cell)
        source = ImageSource.open((data.images, data.labels), classes=data.class_names)
        run = CACHE / "runs" / self.folder.name
        plan = Plan(seed=self.cell.seed)
        defender = Defender(
            ClipGuide("mini"), run, plan=plan, report=lambda *state: print("  ", *state, flush=True)
        )
        return defender.fit(source, model=model, spec=spec), data, truth

    def clipguard(self) -> Row:
        """Return the cured model's row, with detection figures and seconds by stage."""
        defender, _, truth = self.defended()
        history = {key: list(map(float, value)) for key, value in defender.history_.items()}
        found = defender.found_
        return {
            **self.judged(defender.model_),
            "detection": detection(found.entropy, found.split, truth),
            "seconds": {name: round(stage.seconds, 1) for name, stage in defender.stages_.items()},
            "history": history,
            "plan": json.loads(json.dumps(asdict(Plan(seed=self.cell.seed)))),
        }

    def control(self) -> Row:
        """Return the row of the victim fine-tuned on all data for as many samples a pass as the cure took."""
        defender, data, _ = self.defended()
        sizes = (defender.history_["clean"] + defender.history_["triggered"]).astype(int)
        model, seed = copy.deepcopy(defender.before_), Seed(self.cell.seed).child("control")
        recipe = Plan().cure.recipe

        def rows(epoch: int) -> np.ndarray:
            return seed.child("rows", epoch).numpy().permutation(len(data))[: sizes[epoch]]

        fit(model, data.images, rows, cross_entropy(data.labels), recipe, seed)
        return self.judged(model)

    def retrain(self) -> Row:
        """Return the row of a model trained from scratch on what was not flagged."""
        defender, data, _ = self.defended()
        keep = ~defender.split_.triggered
        model, _, about = trained(data, Seed(self.cell.seed).child("victim"), keep)
        return {**self.judged(model), "dropped": int((~keep).sum()), "train_seconds": about["seconds"]}


def main() -> None:
    """Compute the cells named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--retrain", action="store_true")
    parser.add_argument("cells", nargs="+", metavar="PROTOCOL:ATTACK:SEED")
    arguments = parser.parse_args()
    for name in arguments.cells:
        bench = Bench(name)
        bench.row("none", bench.undefended)
        bench.row("oracle", bench.oracle)
        bench.row("clipguard", bench.clipguard)
        bench.row("finetune", bench.control)
        if arguments.retrain:
            bench.row("retrain", bench.retrain)
    print("recipe of victims:", VICTIM, file=sys.stderr)


if __name__ == "__main__":
    main()
