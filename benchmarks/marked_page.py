"""Pages of `docs` with tables that a script writes: only what stands between two marks is replaced."""

import os
from pathlib import Path

from clipguard.lab.benchmark.goals import OTHER_MODEL, STALE_SETTINGS
from clipguard.lab.benchmark.results import Row, read_results

DOCS = Path(__file__).resolve().parents[1] / "docs"
END = "<!-- End of the tables. -->"
NO_ROW = "No row is computed yet."


def begin(script: str) -> str:
    """Return the mark of the tables that a script writes."""
    return f"<!-- The tables are written by benchmarks/{Path(script).name}. -->"


def written(page: str, mark: str, tables: str) -> str:
    """Return a page with other tables after a mark.

    Raises:
        ValueError: the page lacks the mark, or the end.
    """
    before, _, rest = page.partition(mark)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the page lacks {mark!r} or {END!r}: put the marks where the tables belong")
    return f"{before}{mark}\n\n{tables}\n\n{END}{after}"


def picture(file: Path, words: str) -> list[str]:
    """Return the lines that show a picture of a benchmark on a page of `docs`, if it was drawn."""
    return ["", f"![{words}]({Path(os.path.relpath(file, DOCS)).as_posix()})"] if file.is_file() else []


def current_rows(folder: Path) -> list[Row]:
    """Return the rows of a benchmark that are of its present settings; none where nothing was computed."""
    if not (folder / "results.parquet").is_file():
        return []
    rows = read_results(folder)
    return [row for row in rows if not row["row"].endswith((STALE_SETTINGS, OTHER_MODEL))]
