"""Writes the table of docs/trust.md: what came of every hostile input, of fuzzing, and of every fault.

    python tools/trust_table.py

Each input of the catalogue is read in a process of its own, which is killed when it takes too long: a crash
or a hang is counted and the others go on. Every step of writing a run folder is struck by a full disk, and by
a kill. `fuzz_readers.py` and `kill_torture.py` take long: what they counted is read from
benchmarks/results/trust.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from hostile.case import Case
from hostile.catalogue import cases, executed, run
from run_folder_kills import Blow, full_disks, kills

SECONDS = 180
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "trust"
BEGIN, END = "<!-- tools/trust_table.py: begin -->", "<!-- tools/trust_table.py: end -->"
COLUMNS = ("refused", "listed", "accepted", "not as expected", "crashed", "hung", "executed", "data lost")
INTRODUCTION = """*Refused*: the source as a whole, by one line. *Listed*: the input stands in the list of
unreadable images with its reason, and every other image was read. *Accepted*: read as it is, because nothing
is wrong with it for whoever has limits. *Data lost*: an image neither read nor listed. Made by
`python tools/trust_table.py` at commit `{commit}`."""


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


def tried() -> tuple[str, list[str]]:
    """Return the table of the catalogue, and what went wrong."""
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
    return table(("reader", "inputs", *COLUMNS), rows), bad


def fuzzed() -> str:
    """Return the table of all fuzzing so far."""
    formats: dict[str, Counter[str]] = {}
    for path in sorted(RESULTS.glob("fuzz-*.json")):
        for name, count in json.loads(path.read_text())["formats"].items():
            formats[name] = formats.get(name, Counter()) + Counter(count)
    kinds = ("refused", "listed", "accepted", "unexpected", "hung")
    rows = [
        (name, f"{sum(count.values()):,}", *(f"{count[kind]:,}" for kind in kinds))
        for name, count in (*sorted(formats.items()), ("**all**", sum(formats.values(), Counter())))
    ]
    return table(("format", "executions", *kinds), rows)


def struck() -> tuple[str, list[str]]:
    """Return the table of the faults, and those that were not survived."""
    # The order of the steps is what is tried; waiting for the disk would only take time.
    os.fsync = lambda descriptor: None
    rows, bad = [], []
    for name, blows in (("disk full", full_disks), ("process killed, twice", kills)):
        with tempfile.TemporaryDirectory() as place:
            done: list[Blow] = list(blows(Path(place)))
        lost = [blow for blow in done if not blow.mended or blow.left]
        rows.append((f"{name}, at each step of a run folder", len(done), len(done) - len(lost)))
        bad += [f"{name} at step {blow.at}: not survived" for blow in lost]
    for path in sorted(RESULTS.glob("kills-*.json")):
        found = json.loads(path.read_text())
        rounds, survived = found["rounds"], min(found["identical"], found["verified"])
        where = ", ".join(f"{stage} {count}" for stage, count in found["killed_in"].items())
        rows.append(
            (f"random kills of a defence ({where}) in {rounds} rounds", found["kills"], f"{survived} rounds")
        )
        bad += [f"{path.name}: {entry}" for entry in found["differing"]]
    return table(("fault", "injected", "survived: same bytes, seal holds"), rows), bad


def main() -> int:
    """Write the section; return 1 if anything went wrong in it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "trust.md", help="holds the two marks")
    page: Path = parser.parse_args().page
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        parser.error(f"{page} lacks the line {BEGIN if not begin else END}")
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (inputs, wrong), (faults, unsurvived) = tried(), struck()
    bad = "\n".join(f"* {entry}" for entry in wrong + unsurvived)
    parts = [INTRODUCTION.format(commit=commit), inputs, "Mutated files, `tools/fuzz_readers.py`:", fuzzed()]
    parts += ["Faults:", faults, *([bad] if bad else [])]
    text = "\n\n".join(parts)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
    print(text)
    return int(bool(bad))


if __name__ == "__main__":
    raise SystemExit(main())
