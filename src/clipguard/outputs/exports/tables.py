"""All samples as CSV and as JSON lines."""

import json
from pathlib import Path

from clipguard.outputs.exports.rows import column_names, rows_of
from clipguard.runs.files import replacing
from clipguard.runs.lists import write_csv


def write_csv_table(run: Path, file: Path) -> None:
    """Write samples.parquet as CSV whose cells no spreadsheet takes for formulas."""
    names = column_names(run)
    write_csv(file, names, ([row[name] for name in names] for row in rows_of(run)))


def write_json_lines(run: Path, file: Path) -> None:
    """Write one JSON object a sample and line; texts are exact."""
    column_names(run)
    with replacing(file) as part, part.open("w", encoding="ascii", newline="\n") as opened:
        opened.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows_of(run))
