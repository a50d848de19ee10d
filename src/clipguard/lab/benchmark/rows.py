"""Rows, one a cell and defence: computed once, written as JSON when done, gathered into results.parquet.

RUN/cells/<cell>/<row>.json           a finished row
RUN/cells/<cell>/<row>.failed.json    why a row could not be computed; tried again by the next run
RUN/defences/<cell>/                  what the defences keep for themselves
RUN/results.parquet                   all rows of the benchmark's cells, written anew after every row
"""

import json
import re
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import UTC, datetime
from errno import ENOSPC
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from clipguard.defenses import Defense
from clipguard.errors import ClipguardError, reason_of
from clipguard.lab.benchmark.cells import BenchmarkPaths, CellRunner, Row, attack_of, cell_name
from clipguard.lab.benchmark.config import (
    REFERENCE_ROW,
    BenchConfig,
    Cell,
    cells,
    defense_of,
    settings_of,
    variants,
)
from clipguard.lab.benchmark.goals import APART, EARLIER
from clipguard.lab.benchmark.judging import planted
from clipguard.lab.benchmark.machine import commit, machine, peak_memory, versions
from clipguard.lab.benchmark.preflight import preflight
from clipguard.lab.benchmark.results import write_results
from clipguard.runs import read_json, write_json
from clipguard.runs.locks import locked

FORMAT: Final = 1
"""Raise it when the meaning of a figure changes: older rows are then computed again."""

Log = Callable[[str], None]
"""Called with one line when a row is done or has failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a benchmark has come to.

    Attributes:
        rows: finished rows, those of earlier runs included.
        computed: how many of them were computed now.
        failed: rows that could not be computed.
        busy: cells that another process is working on.
    """

    rows: int
    computed: int
    failed: int
    busy: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One row to compute."""

    label: str
    defense: str
    settings: dict[str, Any]
    compute: Callable[[CellRunner], Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFilter:
    """The part of a benchmark that one run computes; the rest is left for others.

    Attributes:
        only: labels of rows; none takes all. Dear rows can wait until all cells have the others.
        cells: pattern, as of file names, of the names of cells.
    """

    only: tuple[str, ...] = ()
    cells: str = "*"


def run_bench(
    config: BenchConfig, lab: BenchmarkPaths, command: str, log: Log, share: RowFilter = RowFilter()
) -> Done:
    """Compute every row of `share` that is not there and return what there is.

    A cell that another process works on is left to it. A row that cannot be computed is noted and the others
    go on; without a victim its whole cell is left.

    Raises:
        ClipguardError: the share names no row or cell, a cell of it cannot begin, or a file of the run is
            damaged.
    """
    wanted = [cell for cell in cells(config) if fnmatchcase(cell_name(cell), share.cells)]
    if not wanted:
        first = cell_name(next(cells(config)))
        raise ClipguardError(f"no cell is named like {share.cells!r}: the first one is {first}")
    tasks = _shared(config, share)
    todo = {cell_name(cell): [task for task in tasks if not _there(cell, task, lab.run)] for cell in wanted}
    guided = any(task.defense not in ("none", REFERENCE_ROW) for left in todo.values() for task in left)
    preflight([cell for cell in wanted if todo[cell_name(cell)]], lab, guided)
    lab.run.mkdir(parents=True, exist_ok=True)
    computed = busy = 0
    for cell in wanted:
        folder = lab.run / "cells" / cell_name(cell)
        with locked(folder / ".lock", wait=False) as free:
            if not free:
                busy += 1
                continue
            work = CellRunner(cell, lab, config.reference_seed)
            for task in tasks:
                outcome = _row(work, task, folder, command, log)
                if outcome == "computed":
                    computed += 1 + _anew(work, tasks_of(config), folder, command, log)
                if outcome != "there":
                    gather(config, lab.run)
                if outcome == "failed" and task.label == "none":
                    break
    rows, failed = gather(config, lab.run)
    return Done(rows=rows, computed=computed, failed=failed, busy=busy)


def _shared(config: BenchConfig, share: RowFilter) -> list[Task]:
    """Return the rows of a share.

    Raises:
        ClipguardError: it names a row that the benchmark has not.
    """
    labels = [task.label for task in tasks_of(config)]
    if unknown := sorted(set(share.only) - set(labels)):
        raise ClipguardError(f"no row {unknown[0]!r} in this benchmark: it has {', '.join(labels)}")
    return [task for task in tasks_of(config) if not share.only or task.label in share.only]


def gather(config: BenchConfig, run: Path) -> tuple[int, int]:
    """Write results.parquet from the rows that are there; return how many there are, and how many failed."""
    finished, failed = [], []
    with locked(run / ".results.lock"):
        for cell, variant in variants(config):
            rows = list(_rows_of(cell, config, run))
            first = next((row for row in rows if row["row"] == "none" and "error" not in row), None)
            taken = None if first is None else planted(first["attack_successes"])
            rows = [{**row, "epochs": cell.recipe.epochs, "variant": variant} for row in rows]
            finished += [{**row, "planted": taken} for row in rows if "error" not in row]
            failed += [row for row in rows if "error" in row]
        write_results(finished + failed, run / "results.parquet")
    return sum(not row["row"].endswith((EARLIER, APART)) for row in finished), len(failed)


def _rows_of(cell: Cell, config: BenchConfig, run: Path) -> Iterator[Row]:
    """Yield the rows of a cell; those of other settings or another victim under a label that says so."""
    folder, first = run / "cells" / cell_name(cell), Row()
    for task in tasks_of(config):
        there = [
            read_json(file)
            for file in (_file(folder, task.label), _failed(folder, task.label))
            if file.exists()
        ]
        valid = [row for row in there if _fits(row, cell, task)]
        earlier = [{**row, "row": f"{task.label}{EARLIER}"} for row in there if "error" not in row]
        if task.defense == "none":
            first = valid[0] if valid else first
        if valid and _apart(valid[0], first):
            # If it was tried to compute it again, and failed, both are told.
            yield {**valid[0], "row": f"{task.label}{APART}"}
            yield from valid[1:]
        elif valid:
            yield valid[0]
        else:
            for row in earlier:
                yield {**row, "row": row["row"] + (APART if _apart(row, first) else "")}


def _fits(row: Row, cell: Cell, task: Task) -> bool:
    """Return whether a row was computed with the present settings, those of the attack included.

    The attack's own defaults came to the rows after the key; a row without them says nothing about them.
    """
    attack = row.get("attack_settings")
    same = attack is None or _says(attack, attack_of(cell))
    return bool(same and row.get("key") == key_of(cell, task))


def _says(told: str, attack: Any) -> bool:
    """Return whether the repr `told` is the attack's, leaving out fields it got later and has untouched."""
    now = repr(attack)
    for field in fields(attack):
        if not re.search(rf"\b{field.name}=", told) and getattr(attack, field.name) == field.default:
            now = re.sub(rf", {field.name}={re.escape(repr(field.default))}", "", now)
    return told == now


def _apart(row: Row, first: Row) -> bool:
    """Return whether a row is of another poisoned set or another victim than that of the undefended one."""
    known = [name for name in ("fingerprint", "victim") if row.get(name) and first.get(name)]
    return any(row[name] != first[name] for name in known)


def tasks_of(config: BenchConfig) -> Iterator[Task]:
    """Yield the rows of every cell: the undefended victim first, then the oracle."""
    for choice in config.defenses:
        if choice.name == "none":
            yield Task(label=choice.label, defense="none", settings={}, compute=CellRunner.undefended)
            yield Task(
                label=REFERENCE_ROW,
                defense=REFERENCE_ROW,
                settings={"seed": config.reference_seed},
                compute=CellRunner.oracle,
            )
        else:
            made: Any = defense_of(config, choice)
            yield Task(
                label=choice.label,
                defense=choice.name,
                # A dataclass tells all its settings, those that nobody chose included; of anything else the
                # text may hold an address, and then no row would ever be found again.
                settings={**asdict(choice), "with": repr(made) if is_dataclass(made) else None},
                compute=_defended(made),
            )


def _defended(defense: Defense) -> Callable[[CellRunner], Row]:
    return lambda work: work.defended(defense)


def _there(cell: Cell, task: Task, run: Path) -> bool:
    """Return whether a row is there, as far as can be told without the poisoned set."""
    file = _file(run / "cells" / cell_name(cell), task.label)
    return file.exists() and _fits(read_json(file), cell, task)


def _row(work: CellRunner, task: Task, folder: Path, command: str, log: Log) -> str:
    """Return `there`, `computed` or `failed`, with the row on disk."""
    file, first = _file(folder, task.label), _file(folder, "none")
    row = read_json(file) if file.exists() else {}
    apart = first.exists() and _apart(row, read_json(first))
    if _fits(row, work.cell, task) and not apart:
        return "there"
    return _computed(work, task, folder, command, log)


def _computed(work: CellRunner, task: Task, folder: Path, command: str, log: Log) -> str:
    """Return `computed` or `failed`; a row that was there stays until another takes its place."""
    file, failed = _file(folder, task.label), _failed(folder, task.label)
    key = key_of(work.cell, task)
    about = {**_about(work.cell, task, command), "key": key, "cell": work.name}
    began = time.monotonic()
    try:
        figures = task.compute(work)
    except (Exception, SystemExit) as error:  # Anybody's code may run here: it costs its row, not the night.
        if isinstance(error, OSError) and error.errno == ENOSPC:
            raise
        known = isinstance(error, ClipguardError)
        fault = str(error) if known else f"{type(error).__name__}: {reason_of(error)} (trace in {failed})"
        write_json(failed, {**about, "error": fault, "trace": None if known else traceback.format_exc()})
        log(f"{work.name}, {task.label}: failed: {fault}")
        return "failed"
    costs = {"wall_seconds": time.monotonic() - began, "peak_memory_mb": peak_memory()}
    write_json(file, {**about, **figures, **costs})
    failed.unlink(missing_ok=True)
    log(f"{work.name}, {task.label}: {_told(figures)}")
    return "computed"


def _anew(work: CellRunner, tasks: Iterator[Task], folder: Path, command: str, log: Log) -> int:
    """Judge victim and oracle again where they are of another poisoned set or victim; return how many.

    Another machine rounds otherwise: it trains another helper net, hence another set, and another victim. A
    row is held against those that it was computed from.
    """
    done = 0
    for task in tasks:
        file = _file(folder, task.label)
        if task.defense in ("none", REFERENCE_ROW) and file.exists():
            row, now = read_json(file), work.victim_digest
            other_victim = task.defense == "none" and now is not None and row.get("victim") != now
            if other_victim or row.get("fingerprint") != work.poisoned[0].fingerprint:
                log(f"{work.name}, {task.label}: of another set or victim, computed again")
                done += _computed(work, task, folder, command, log) == "computed"
    return done


def _about(cell: Cell, task: Task, command: str) -> Row:
    """Return what a figure is of, and what it was made with."""
    return {
        "format": FORMAT,
        "data": cell.data.name,
        "attack": cell.attack.name,
        "rate": cell.rate,
        "target": cell.target,
        "guide": cell.guide.name,
        "degrade": cell.guide.degrade,
        "net": cell.net.name,
        "seed": cell.seed,
        "row": task.label,
        "defense": task.defense,
        "settings": {"cell": settings_of(cell), "row": task.settings},
        "command": command,
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def key_of(cell: Cell, task: Task) -> str:
    """Return what a row's figures depend on, as a hash."""
    text = json.dumps([FORMAT, settings_of(cell), task.label, task.settings], sort_keys=True, default=str)
    return sha256(text.encode()).hexdigest()


def _told(figures: Row) -> str:
    success = figures["attack_success"]
    asr = "" if success is None else f", attack success {100 * success:.2f} %"
    return f"accuracy {100 * figures['accuracy']:.2f} %{asr}"


def _file(folder: Path, label: str) -> Path:
    return folder / f"{re.sub(r'[^a-zA-Z0-9.-]+', '-', label)}.json"


def _failed(folder: Path, label: str) -> Path:
    return _file(folder, label).with_suffix(".failed.json")
