"""Prove that a change of the code changes no result: run small scans and repairs with two versions, compare.

    python tools/golden.py --base 07296d3            both versions, then the comparison
    python tools/golden.py --base 07296d3 --keep DIR  the base's figures are kept in DIR for the next time

Machines round differently, so that figures made elsewhere prove nothing: the base is computed here, from a
copy of its commit, by one thread. Compared are sha256 hashes of arrays, rankings, triggers and weights.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CASES = ("digits", "cifar-none", "cifar-badnets", "cifar-flips")


def checkout(commit: str, folder: Path) -> None:
    """Write the tree of a commit into a new folder."""
    folder.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", commit, "src"], check=True, capture_output=True
    )
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)


def run(case: str, source: Path, data: Path, victim: Path, out: Path) -> dict[str, str]:
    """Return the hashes of one case, computed by the code in `source` in a process of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(source)}
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        command = [sys.executable, str(HERE / "golden_case.py"), case, str(data), str(victim), scratch]
        done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    hashes: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return hashes


def main() -> int:
    """Compare and return 0 where nothing differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", required=True, help="commit to compare with")
    parser.add_argument("--keep", type=Path, help="folder that keeps the base's code, victims and hashes")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/cifar10/train.parquet")
    parser.add_argument("--case", action="append", choices=CASES, help="only this case")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        kept = given.keep or Path(scratch)
        kept.mkdir(parents=True, exist_ok=True)
        if not (kept / "base").exists():
            checkout(given.base, kept / "base")
        differences = 0
        for case in given.case or CASES:
            victim, before = kept / f"{case}.safetensors", kept / f"{case}.json"
            if not before.exists():
                hashes = run(case, kept / "base" / "src", given.data, victim, kept)
                before.write_text(json.dumps(hashes, indent=1) + "\n")
            expected, found = (
                json.loads(before.read_text()),
                run(case, ROOT / "src", given.data, victim, kept),
            )
            for name in sorted(expected.keys() - found.keys()):
                print(f"left   {case:14} {name}", flush=True)
            for name in sorted(found):
                same = expected.get(name) == found.get(name)
                differences += not same
                print(f"{'same' if same else 'OTHER':6} {case:14} {name}", flush=True)
        print(f"{differences} of the values differ")
        return min(differences, 1)


if __name__ == "__main__":
    sys.exit(main())
