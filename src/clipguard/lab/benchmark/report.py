"""results.parquet -> results.md and pictures; reads nothing else, and needs no torch."""

from dataclasses import dataclass
from pathlib import Path

from clipguard.errors import ClipguardError
from clipguard.lab.benchmark.pictures import write_pictures
from clipguard.lab.benchmark.results import read_results
from clipguard.lab.benchmark.tables import markdown
from clipguard.runs.files import write_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The files of a report; `missing` says in one line why there are no pictures."""

    table: Path
    pictures: tuple[Path, ...]
    missing: str | None


def write_bench_report(run: Path) -> Written:
    """Return what was written into `run` from its results.parquet alone.

    Raises:
        ClipguardError: there is no such file, or it is damaged.
    """
    rows = read_results(run)
    table = run / "results.md"
    write_text(table, markdown(rows))
    try:
        return Written(table=table, pictures=tuple(write_pictures(rows, run)), missing=None)
    except ClipguardError as error:
        return Written(table=table, pictures=(), missing=str(error))
