"""Rows, one a cell and defence: computed once, written as JSON when done, gathered into results.parquet.

RUN/cells/<cell>/<row>.json           a finished row
RUN/cells/<cell>/<row>.failed.json    why a row could not be computed; tried again by the next run
RUN/defences/<cell>/                  the defences' own files
RUN/results.parquet                   all rows of the benchmark's cells, written anew after every row
"""

import re
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from errno import ENOSPC
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from clipguard.errors import ClipguardError, reason_of
from clipguard.lab.benchmark.cells import BenchmarkPaths, CellRunner, cell_name
from clipguard.lab.benchmark.config import BenchConfig, Cell, cells, variants
from clipguard.lab.benchmark.goals import OTHER_MODEL, STALE_SETTINGS, UNDEFENDED_ROW, percent
from clipguard.lab.benchmark.machine import commit, machine, peak_memory, versions
from clipguard.lab.benchmark.preflight import preflight
from clipguard.lab.benchmark.rates import attack_succeeded
from clipguard.lab.benchmark.results import Row, write_results
from clipguard.lab.benchmark.tasks import Task, key_of, row_settings, tasks_of
from clipguard.runs import read_json, write_json
from clipguard.runs.locks import locked

Log = Callable[[str], None]
"""Called with one line when a row is done or has failed."""
Outcome = Literal["present", "computed", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkSummary:
    """The state of a benchmark after a run.

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
class RowFilter:
    """The part of a benchmark that one run computes; the rest is left for others.

    Attributes:
        only: labels of rows; () takes all. Expensive rows can wait until all cells have the others.
        cells: pattern, as of file names, of the names of cells.
    """

    only: tuple[str, ...] = ()
    cells: str = "*"

    def tasks(self, config: BenchConfig) -> list[Task]:
        """Return the rows that the filter takes.

        Raises:
            ClipguardError: it names a row that the benchmark does not have.
        """
        tasks = list(tasks_of(config))
        labels = [task.label for task in tasks]
        if unknown := sorted(set(self.only) - set(labels)):
            raise ClipguardError(f"no row {unknown[0]!r} in this benchmark: it has {', '.join(labels)}")
        return [task for task in tasks if not self.only or task.label in self.only]

    def select(self, config: BenchConfig) -> list[Cell]:
        """Return the cells that the filter takes.

        Raises:
            ClipguardError: there is none.
        """
        chosen = [cell for cell in cells(config) if fnmatchcase(cell_name(cell), self.cells)]
        if not chosen:
            first = cell_name(next(cells(config)))
            raise ClipguardError(f"no cell is named like {self.cells!r}: the first one is {first}")
        return chosen


def run_bench(
    config: BenchConfig, paths: BenchmarkPaths, command: str, log: Log, row_filter: RowFilter = RowFilter()
) -> BenchmarkSummary:
    """Compute every missing row that the filter takes and return what there is.

    A cell that another process works on is left to it. A row that cannot be computed is noted and the others
    go on. Without a victim the rest of its cell is left out.

    Raises:
        ClipguardError: the filter names no row or cell, one of its cells cannot begin, or a file of the run
            is damaged.
    """
    chosen, tasks = row_filter.select(config), row_filter.tasks(config)
    missing = [[task for task in tasks if not _present(cell, task, paths.run)] for cell in chosen]
    guided = any(task.defended for of_cell in missing for task in of_cell)
    preflight([cell for cell, of_cell in zip(chosen, missing, strict=True) if of_cell], paths, guided)
    paths.run.mkdir(parents=True, exist_ok=True)
    computed = busy = 0
    for cell in chosen:
        with locked(_folder(cell, paths.run) / ".lock", wait=False) as free:
            if not free:
                busy += 1
                continue
            rows = _CellRows(CellRunner(cell, paths, config.reference_seed), config, command, log)
            computed += rows.compute(tasks)
    finished, failed = gather(config, paths.run)
    return BenchmarkSummary(rows=finished, computed=computed, failed=failed, busy=busy)


@dataclass(frozen=True, slots=True)
class _CellRows:
    """Computes the rows of one cell and writes them."""

    runner: CellRunner
    config: BenchConfig
    command: str
    log: Log

    @property
    def folder(self) -> Path:
        """The folder of the cell's rows."""
        return _folder(self.runner.cell, self.runner.paths.run)

    def compute(self, tasks: list[Task]) -> int:
        """Compute the missing rows and return how many were computed."""
        computed = 0
        for task in tasks:
            outcome = self._row(task)
            if outcome == "computed":
                computed += 1 + self._refresh_controls()
            if outcome != "present":
                gather(self.config, self.runner.paths.run)
            if outcome == "failed" and task.label == UNDEFENDED_ROW:
                break
        return computed

    def _row(self, task: Task) -> Outcome:
        file, undefended = _file(self.folder, task.label), _file(self.folder, UNDEFENDED_ROW)
        if file.exists():
            row = read_json(file)
            first = read_json(undefended) if undefended.exists() else {}
            if _current(row, self.runner.cell, task) and not _of_other_model(row, first):
                return "present"
        return self._computed(task)

    def _computed(self, task: Task) -> Outcome:
        """Return `computed` or `failed`; an earlier row stays until another takes its place."""
        file, failed = _file(self.folder, task.label), _failed(self.folder, task.label)
        about = _about(self.runner, task, self.command)
        began = time.monotonic()
        try:
            figures = task.compute(self.runner)
        except (Exception, SystemExit) as error:  # Foreign code may run here: it costs its row, not the run.
            if isinstance(error, OSError) and error.errno == ENOSPC:
                raise
            fault, trace = str(error), None
            if not isinstance(error, ClipguardError):
                fault = f"{type(error).__name__}: {reason_of(error)} (trace in {failed})"
                trace = traceback.format_exc()
            write_json(failed, {**about, "error": fault, "trace": trace})
            self.log(f"{self.runner.name}, {task.label}: failed: {fault}")
            return "failed"
        costs = {"wall_seconds": time.monotonic() - began, "peak_memory_mb": peak_memory()}
        write_json(file, {**about, **figures, **costs})
        failed.unlink(missing_ok=True)
        self.log(f"{self.runner.name}, {task.label}: {_rates_in_words(figures)}")
        return "computed"

    def _refresh_controls(self) -> int:
        """Compute victim and reference again where they are of another set or victim; return how many.

        Another machine rounds otherwise: it fits another attack, hence makes another set, and trains another
        victim. A row is held against those that it was computed from.
        """
        refreshed = 0
        for task in tasks_of(self.config):
            file = _file(self.folder, task.label)
            if not task.defended and file.exists() and self._is_of_other_model(task, read_json(file)):
                self.log(f"{self.runner.name}, {task.label}: of another set or victim, computed again")
                refreshed += self._computed(task) == "computed"
        return refreshed

    def _is_of_other_model(self, task: Task, row: Row) -> bool:
        victim = self.runner.victim_digest
        other_victim = task.label == UNDEFENDED_ROW and victim is not None and row.get("victim") != victim
        return other_victim or row.get("fingerprint") != self.runner.poisoned[0].fingerprint


def gather(config: BenchConfig, run: Path) -> tuple[int, int]:
    """Write results.parquet from the rows on disk; return how many are current, and how many failed."""
    finished, failed = [], []
    with locked(run / ".results.lock"):
        for cell, variant in variants(config):
            rows = list(_rows_of(cell, config, run))
            first = next((row for row in rows if row["row"] == UNDEFENDED_ROW and "error" not in row), None)
            succeeded = None if first is None else attack_succeeded(first["attack_successes"])
            rows = [{**row, "epochs": cell.recipe.epochs, "variant": variant} for row in rows]
            finished += [{**row, "attack_succeeded": succeeded} for row in rows if "error" not in row]
            failed += [row for row in rows if "error" in row]
        write_results(finished + failed, run / "results.parquet")
    return sum(not row["row"].endswith((STALE_SETTINGS, OTHER_MODEL)) for row in finished), len(failed)


def _rows_of(cell: Cell, config: BenchConfig, run: Path) -> Iterator[Row]:
    """Yield the rows of a cell; the label marks stale settings and other models."""
    folder, undefended = _folder(cell, run), Row()
    for task in tasks_of(config):
        files = (_file(folder, task.label), _failed(folder, task.label))
        rows = [read_json(file) for file in files if file.exists()]
        current = [row for row in rows if _current(row, cell, task)]
        if task.label == UNDEFENDED_ROW and current:
            undefended = current[0]
        if current and _of_other_model(current[0], undefended):
            # If it was computed again in vain, the failure is a row, too.
            yield {**current[0], "row": task.label + OTHER_MODEL}
            yield from current[1:]
        elif current:
            yield current[0]
        else:
            for row in rows:
                if "error" not in row:
                    other = OTHER_MODEL if _of_other_model(row, undefended) else ""
                    yield {**row, "row": task.label + STALE_SETTINGS + other}


def _current(row: Row, cell: Cell, task: Task) -> bool:
    """Return whether a row was computed with the present settings and code."""
    return bool(row.get("key") == key_of(row_settings(cell, task)))


def _of_other_model(row: Row, undefended: Row) -> bool:
    """Return whether a row is of another poisoned set or victim than the undefended row."""
    known = [name for name in ("fingerprint", "victim") if row.get(name) and undefended.get(name)]
    return any(row[name] != undefended[name] for name in known)


def _present(cell: Cell, task: Task, run: Path) -> bool:
    """Return whether a row is on disk and current, as far as that is known without the poisoned set."""
    file = _file(_folder(cell, run), task.label)
    return file.exists() and _current(read_json(file), cell, task)


def _about(runner: CellRunner, task: Task, command: str) -> Row:
    """Return what a row is of, and what it was made with."""
    cell, settings = runner.cell, row_settings(runner.cell, task)
    return {
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
        "cell": runner.name,
        "key": key_of(settings),
        "settings": settings,
        "command": command,
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _rates_in_words(figures: Row) -> str:
    success: Any = figures["attack_success"]
    asr = "" if success is None else f", attack success {percent(success)} %"
    return f"accuracy {percent(figures['accuracy'])} %{asr}"


def _folder(cell: Cell, run: Path) -> Path:
    return run / "cells" / cell_name(cell)


def _file(folder: Path, label: str) -> Path:
    return folder / f"{re.sub(r'[^a-zA-Z0-9.-]+', '-', label)}.json"


def _failed(folder: Path, label: str) -> Path:
    return _file(folder, label).with_suffix(".failed.json")
