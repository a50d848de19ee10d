"""`bench` and `bench-report`: a TOML file to rows, results.parquet to a table and pictures."""

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipguard.cli.options import BenchOptions
from clipguard.cli.outcome import Outcome
from clipguard.lab.benchmark.places import cache_folder
from clipguard.outputs.progress import Lines, warn

if TYPE_CHECKING:
    from rich.console import Console

FAILED = 2


def run_benchmark(file: Path, options: BenchOptions) -> Outcome:
    """Return the counts of rows and the files; the code is 2 where a row failed.

    Raises:
        ClipguardError: the file is no benchmark, or a file of the run is damaged.
    """
    from clipguard.data.catalog import data_folder
    from clipguard.lab.benchmark.config import read_config
    from clipguard.lab.benchmark.places import BenchmarkPaths
    from clipguard.lab.benchmark.running import run_rows

    config = read_config(file)
    paths = BenchmarkPaths(
        run=options.out,
        cache=options.cache or cache_folder(),
        data=options.data or data_folder(),
        beside=file.parent,
        download=options.download,
        progress=Lines(sys.stderr.write),
    )
    command = _command(file, options)
    summary = run_rows(config, paths, command, device=options.device, only=options.only, cells=options.cells)
    if summary.busy:
        warn([f"{summary.busy} cells are left to another process that works in {options.out}"])
    return _reported(options.out, asdict(summary), options.json, FAILED if summary.failed else 0)


def _command(file: Path, options: BenchOptions) -> str:
    """Return what computes these rows: which of all rows were chosen does not change them."""
    # A folder of this machine says nothing elsewhere.
    data = " --data DATA" if options.data else ""
    return f"clipguard bench {file} -o {options.out}{data}"


def run_report(run: Path, as_json: bool) -> Outcome:
    """Return the report of a finished benchmark.

    Raises:
        ClipguardError: the folder has no results.
    """
    return _reported(run, {}, as_json, 0)


def _reported(run: Path, counts: dict[str, Any], as_json: bool, code: int) -> Outcome:
    from clipguard.lab.benchmark.report import write_bench_report

    (table, *pictures), missing = write_bench_report(run)
    warn([missing] if missing else [])
    files = {
        "results": str(run / "results.parquet"),
        "table": str(table),
        "pictures": list(map(str, pictures)),
    }
    value = {**counts, **files}
    return Outcome(value=value, show=partial(_show, value), as_json=as_json, code=code)


def _show(value: dict[str, Any], console: "Console") -> None:
    if "rows" in value:
        failed = f", {value['failed']} failed (see the end of the table)" if value["failed"] else ""
        console.print(f"{value['rows']} rows, {value['computed']} of them computed now{failed}", markup=False)
    for file in (value["table"], value["results"], *value["pictures"]):
        console.print(f"  {file}", soft_wrap=True, markup=False)
