"""What it takes to make a poisoned set of the table's 12,000 rows: poison it and write it.

    python benchmarks/poisoning_time.py [NAME]...

Helper nets come from the cache or are trained before the clock starts. Writes results/poisoning.json: for
each attack the seconds to poison, and those to write the set losslessly as Parquet.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from clipguard.data.writer import write_parquet
from clipguard.lab.benchmark.machine import commit, machine
from works import RESULTS, works

LIMIT = 10.0
"""Seconds that an attack may take."""


def main() -> None:
    """Measure the attacks of these names, all without any, and write what was found beside earlier rows."""
    file = RESULTS / "poisoning.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else {}
    for work in works("table"):
        name = work.cell.attack.name
        if work.cell.seed or (sys.argv[1:] and name not in sys.argv[1:]):
            continue
        clean = work.sets[0]
        _ = work.attack
        began = time.monotonic()
        data, truth = work.poisoned
        made = time.monotonic()
        with tempfile.TemporaryDirectory() as place:
            write_parquet(data, Path(place) / "train.parquet")
        written = time.monotonic()
        rows[name] = {
            "n": len(clean),
            "poisoned": int(truth.poisoned.sum()),
            "poison_seconds": round(made - began, 2),
            "write_seconds": round(written - made, 2),
            "within_limit": written - began <= LIMIT,
            "seed": work.cell.seed,
            "commit": commit(),
            "machine": machine(),
        }
        print(name, rows[name], flush=True)
    about = {"command": "python benchmarks/poisoning_time.py", "limit_seconds": LIMIT}
    file.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
