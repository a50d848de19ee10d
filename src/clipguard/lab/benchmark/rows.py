"""Rows, one a cell and defence: computed once, written as JSON when done, gathered into results.parquet.

RUN/cells/<cell>/<row>.json           a finished row
RUN/cells/<cell>/<row>.failed.json    why a row could not be computed; tried again by the next run
RUN/defences/<cell>/                  the defences' own files
RUN/results.parquet                   all rows of the benchmark's cells, written anew after every row
"""

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from errno import ENOSPC
from fnmatch import fnmatchcase
from pathlib import Path

from clipguard.errors import ClipguardError, reason_of
from clipguard.lab.benchmark.cells import CellRunner, cell_name, preflight
from clipguard.lab.benchmark.config import FAILED, BenchConfig, Cell, cells, file_stem, variants
from clipguard.lab.benchmark.contents import contents_of
from clipguard.lab.benchmark.goals import OTHER_MODEL, STALE_SETTINGS, UNDEFENDED_ROW, percent
from clipguard.lab.benchmark.machine import commit, forget_peak_memory, machine, peak_memory
from clipguard.lab.benchmark.places import BenchmarkPaths
from clipguard.lab.benchmark.rates import attack_succeeded
from clipguard.lab.benchmark.results import RESULTS_LOCK, Row, write_results
from clipguard.lab.benchmark.tasks import Task, key_of, row_settings, tasks_of
from clipguard.runs import read_json, write_json
from clipguard.runs.locks import locked
from clipguard.runs.run_folder import versions_of

Log = Callable[[str], None]
"""Called with one line when a row is done or has failed."""


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


def run_bench(
    config: BenchConfig,
    paths: BenchmarkPaths,
    command: str,
    log: Log,
    only: Sequence[str] = (),
    pattern: str = "*",
) -> BenchmarkSummary:
    """Compute the missing rows and return what there is.

    A cell that another process works on is left to it. A row that cannot be computed is noted and the others
    go on. Without a victim the rest of its cell is left out.

    Args:
        config: the benchmark.
        paths: where it works.
        command: as the user has given it, for the rows.
        log: called as rows are done.
        only: labels of the rows to compute; () takes all. Expensive rows can wait until all cells have the
            others.
        pattern: of the names of the cells to compute, as of file names.

    Raises:
        ClipguardError: no row or cell is named so, one of the cells cannot begin, or a file of the run is
            damaged.
    """
    chosen, tasks = _cells(config, pattern), _tasks(config, only)
    missing = [(cell, task) for cell in chosen for task in tasks if not _is_present(cell, task, paths)]
    preflight([cell for cell, _ in missing], paths, guided=any(task.defended for _, task in missing))
    paths.run.mkdir(parents=True, exist_ok=True)
    computed = busy = 0
    for cell in chosen:
        with locked(_folder(cell, paths.run) / ".lock", wait=False) as free:
            if free:
                runner = CellRunner(cell, paths, config.reference_seeds)
                computed += _CellRows(runner, config, command, log).compute(tasks)
            else:
                busy += 1
    finished, failed = gather(config, paths)
    return BenchmarkSummary(rows=finished, computed=computed, failed=failed, busy=busy)


def _tasks(config: BenchConfig, only: Sequence[str]) -> list[Task]:
    tasks = list(tasks_of(config))
    labels = [task.label for task in tasks]
    if unknown := sorted(set(only) - set(labels)):
        raise ClipguardError(f"no row {unknown[0]!r} in this benchmark: it has {', '.join(labels)}")
    return [task for task in tasks if not only or task.label in only]


def _cells(config: BenchConfig, pattern: str) -> list[Cell]:
    everything = list(cells(config))
    chosen = [cell for cell in everything if fnmatchcase(cell_name(cell), pattern)]
    if not chosen:
        raise ClipguardError(
            f"no cell is named like {pattern!r}: the first one is {cell_name(everything[0])}"
        )
    return chosen


@dataclass(frozen=True, slots=True)
class _CellRows:
    """Computes the rows of one cell and writes them."""

    runner: CellRunner
    config: BenchConfig
    command: str
    log: Log

    def compute(self, tasks: list[Task]) -> int:
        """Compute the missing rows and return how many were computed."""
        computed, paths = 0, self.runner.paths
        for task in tasks:
            if _is_present(self.runner.cell, task, paths):
                continue
            done = self._computed(task)
            if done:
                computed += 1 + self._refresh_controls()
            gather(self.config, paths)
            if not done and task.label == UNDEFENDED_ROW:
                break
        return computed

    def _computed(self, task: Task) -> bool:
        """Return whether the row could be computed; an earlier row stays until another takes its place."""
        file = _file(self.runner.cell, task.label, self.runner.paths.run)
        failed, about = _failed(file), _about(self.runner, task, self.command)
        began = time.monotonic()
        forget_peak_memory()
        try:
            figures = task.compute(self.runner)
        except (Exception, SystemExit) as error:  # Foreign code may run here: it costs its row, not the run.
            if isinstance(error, OSError) and error.errno == ENOSPC:
                raise
            fault, trace = str(error), None
            if not isinstance(error, ClipguardError):
                fault = f"{type(error).__name__}: {reason_of(error)} (trace in {failed})"
                trace = traceback.format_exc()
            write_json(failed, {**about, "finished": _now(), "error": fault, "trace": trace})
            self.log(f"{self.runner.name}, {task.label}: failed: {fault}")
            return False
        costs = {"wall_seconds": time.monotonic() - began, "peak_memory_mb": peak_memory()}
        write_json(file, {**about, "finished": _now(), **costs, **figures})
        failed.unlink(missing_ok=True)
        self.log(f"{self.runner.name}, {task.label}: {_in_words(figures)}")
        return True

    def _refresh_controls(self) -> int:
        """Compute victim and reference again where they are of another set or victim; return how many.

        Another machine rounds otherwise: it fits another attack, hence makes another set, and trains another
        victim. A row is held against those that it was computed from.
        """
        refreshed, runner = 0, self.runner
        present = {"fingerprint": runner.poisoned[0].fingerprint, "victim": runner.victim.digest}
        for task in tasks_of(self.config):
            row = _read(_file(runner.cell, task.label, runner.paths.run))
            if not task.defended and _is_of_other_model(row, present):
                self.log(f"{runner.name}, {task.label}: of another set or victim, computed again")
                refreshed += self._computed(task)
        return refreshed


def gather(config: BenchConfig, paths: BenchmarkPaths) -> tuple[int, int]:
    """Write results.parquet from the rows on disk; return how many are current, and how many failed."""
    finished, failed = list[Row](), list[Row]()
    with locked(paths.run / RESULTS_LOCK):
        for cell, variant in variants(config):
            for row in _rows_of(cell, config, paths):
                row |= {"epochs": cell.recipe.epochs, "variant": variant}
                (failed if "error" in row else finished).append(row)
        write_results(finished + failed, paths.run / "results.parquet")
    return sum(not row["row"].endswith((STALE_SETTINGS, OTHER_MODEL)) for row in finished), len(failed)


def _rows_of(cell: Cell, config: BenchConfig, paths: BenchmarkPaths) -> Iterator[Row]:
    """Yield the rows of a cell; the label marks stale settings and other models."""
    undefended, succeeded = Row(), None
    for task in tasks_of(config):
        file = _file(cell, task.label, paths.run)
        row, failure = _read(file), _read(_failed(file))
        mark = "" if _is_current(row, cell, task, paths) else STALE_SETTINGS
        if task.label == UNDEFENDED_ROW and not mark:
            undefended, succeeded = row, attack_succeeded(row["attack_successes"])
        mark += OTHER_MODEL if _is_of_other_model(row, undefended) else ""
        if row:
            yield {**row, "row": task.label + mark, "attack_succeeded": succeeded}
        # Of a row that was computed again in vain, the failure is a row, too.
        if mark and _is_current(failure, cell, task, paths):
            yield failure


def _is_current(row: Row, cell: Cell, task: Task, paths: BenchmarkPaths) -> bool:
    """Return whether a row was computed with the present settings, code and files.

    A file that is not there any more, or of which the row says nothing, speaks for no change.
    """
    if row.get("key") != key_of(row_settings(cell, task)):
        return False
    noted: dict[str, str] = row.get("contents", {})
    present = contents_of(cell, paths, guided=task.defended) if noted else {}
    return all(present.get(name, digest) == digest for name, digest in noted.items())


def _is_of_other_model(row: Row, undefended: Row) -> bool:
    """Return whether a row is of another poisoned set or victim than the undefended row."""
    known = [name for name in ("fingerprint", "victim") if row.get(name) and undefended.get(name)]
    return any(row[name] != undefended[name] for name in known)


def _is_present(cell: Cell, task: Task, paths: BenchmarkPaths) -> bool:
    """Return whether a row is on disk, current, and of the same model as the undefended row."""
    row, undefended = (_read(_file(cell, label, paths.run)) for label in (task.label, UNDEFENDED_ROW))
    return _is_current(row, cell, task, paths) and not _is_of_other_model(row, undefended)


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
        "net": cell.net,
        "seed": cell.seed,
        "row": task.label,
        "defense": task.defense,
        "cell": runner.name,
        "key": key_of(settings),
        "settings": settings,
        "contents": contents_of(cell, runner.paths, guided=task.defended),
        "command": command,
        "commit": commit(),
        "machine": machine(),
        "versions": versions_of("clipguard", "numpy", "torch", "open_clip_torch", "timm", "scipy"),
    }


def _now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _in_words(figures: Row) -> str:
    """Return the figures of a row that matter first."""
    if figures["accuracy"] is None:
        auroc = figures["detection"]["auroc_suspicion"]
        return "AUROC unknown: nothing is poisoned" if auroc is None else f"AUROC {auroc:.3f}"
    success = figures["attack_success"]
    asr = "" if success is None else f", attack success {percent(success)} %"
    return f"accuracy {percent(figures['accuracy'])} %{asr}"


def _folder(cell: Cell, run: Path) -> Path:
    return run / "cells" / cell_name(cell)


def _file(cell: Cell, label: str, run: Path) -> Path:
    return _folder(cell, run) / f"{file_stem(label)}.json"


def _failed(file: Path) -> Path:
    return file.with_suffix(f"{FAILED}.json")


def _read(file: Path) -> Row:
    """Return a row on disk; an empty one where there is none."""
    return Row(read_json(file)) if file.exists() else Row()
