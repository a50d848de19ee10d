"""What it takes to make a poisoned set of the table's 12,000 rows: poison it and write it.

    python benchmarks/poisoning_time.py [NAME]...

Attacks are fitted before the clock starts. Writes results/poisoning.json: for each attack the seconds to
poison, and those to write the set losslessly as Parquet. Reproduces the published times.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from clipguard.data.writer import write_parquet
from clipguard.lab.benchmark.machine import commit, machine
from runners import RESULTS, runners

LIMIT = 10.0
"""Seconds that an attack may take."""


def main() -> None:
    """Measure the attacks of these names, or all, and write their times beside earlier rows."""
    file = RESULTS / "poisoning.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else {}
    for runner in runners("table-cifar10"):
        name = runner.cell.attack.name
        if runner.cell.seed or (sys.argv[1:] and name not in sys.argv[1:]):
            continue
        clean = runner.sets[0]
        _ = runner.attack
        began = time.monotonic()
        data, truth = runner.poisoned
        poisoned = time.monotonic()
        with tempfile.TemporaryDirectory() as place:
            write_parquet(data, Path(place) / "train.parquet")
        written = time.monotonic()
        rows[name] = {
            "n": len(clean),
            "poisoned": int(truth.poisoned.sum()),
            "poison_seconds": round(poisoned - began, 2),
            "write_seconds": round(written - poisoned, 2),
            "within_limit": written - began <= LIMIT,
            "seed": runner.cell.seed,
            "commit": commit(),
            "machine": machine(),
        }
        print(name, rows[name], flush=True)
    about = {"command": "python benchmarks/poisoning_time.py", "limit_seconds": LIMIT}
    file.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
