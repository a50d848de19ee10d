"""Prints docs/trust.md: what came of every hostile input of the catalogue, and of fuzzing.

    python tools/trust_table.py --fuzz fuzz/counts.json > docs/trust.md

Each input is read in a process of its own, which is killed when it takes too long: a crash or a hang is
counted and the others go on.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from hostile.case import Case
from hostile.catalogue import cases, executed, run

SECONDS = 180
COLUMNS = ("refused", "listed", "accepted", "not as expected", "crashed", "hung", "executed", "data lost")
INTRODUCTION = """# What hostile input does

Written by `tools/trust_table.py`. *Refused*: the source as a whole, by one line. *Listed*: the input stands
in the list of unreadable images with its reason, and every other image was read. *Accepted*: read as it is,
because nothing is wrong with it for whoever has limits. *Data lost*: an image neither read nor listed.
"""


def attempt(case: Case) -> str:
    """Return the outcome of a case in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            os._exit(_child(case, Path(folder)))
        status = _waited(child)
        if executed(Path(folder)):
            return "executed"
    if status is None:
        return "hung"
    if os.WIFSIGNALED(status):
        return "crashed"
    return ("refused", "listed", "accepted", "data lost", "not as expected")[os.WEXITSTATUS(status)]


def _child(case: Case, folder: Path) -> int:
    try:
        found = run(case, folder)[0]
    except AssertionError as error:
        return 3 if "lost" in str(error) else 4
    except BaseException:
        return 4
    return ("refused", "listed", "accepted").index(found) if found == case.expected else 4


def _waited(child: int) -> int | None:
    """Return how a process ended; None when it had to be killed."""
    for _ in range(SECONDS * 20):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def main() -> int:
    """Print the document; return 1 if anything went wrong in it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fuzz", type=Path, nargs="*", default=[], help="counts.json of fuzz_readers.py")
    given = parser.parse_args()
    counts: dict[str, Counter[str]] = {}
    bad = []
    for case in cases():
        found = attempt(case)
        counts.setdefault(case.name.partition(":")[0], Counter())[found] += 1
        if found not in ("refused", "listed", "accepted"):
            bad.append(f"{case.name}: {found}")
    total = sum(counts.values(), Counter())
    rows = [
        (kind, sum(count.values()), *(count[name] for name in COLUMNS))
        for kind, count in (*counts.items(), ("**all**", total))
    ]
    print(INTRODUCTION)
    print(table(("reader", "inputs", *COLUMNS), rows))
    for entry in bad:
        print(f"\n* {entry}")
    fuzzed: dict[str, Counter[str]] = {}
    for path in given.fuzz:
        for name, count in json.loads(path.read_text())["formats"].items():
            fuzzed[name] = fuzzed.get(name, Counter()) + Counter(count)
    kinds = ("refused", "listed", "accepted", "unexpected", "hung")
    if fuzzed:
        whole = sum(fuzzed.values(), Counter())
        print("\n## Fuzzing\n\nMutated files, `tools/fuzz_readers.py`.\n")
        lines = [
            (name, sum(count.values()), *(count[kind] for kind in kinds))
            for name, count in (*sorted(fuzzed.items()), ("**all**", whole))
        ]
        print(table(("format", "executions", *kinds), lines))
    return int(bool(bad))


if __name__ == "__main__":
    raise SystemExit(main())
