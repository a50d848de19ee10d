"""Lists that people open in other programs: names and cells come from the data and are hostile."""

import csv
import json
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from clipguard.errors import one_line
from clipguard.runs.files import replacing, write_text

_FORMULA: Final = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
"""What makes a spreadsheet take a cell for a formula."""
_UNPRINTABLE: Final = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Categories of characters that break lines, control a terminal or turn the direction of text."""


def name_line(name: str) -> str:
    """Return a name as one line: itself, or a JSON text where it would break, hide or end the line.

    A line that starts with a double quote is always JSON.
    """
    unsafe = name != name.strip() or name.startswith('"') or not name
    unsafe = unsafe or any(unicodedata.category(letter) in _UNPRINTABLE for letter in name)
    return json.dumps(name) if unsafe else name


def csv_cell(value: Any) -> str:
    """Return a cell of one line that no spreadsheet takes for a formula; a quote is put before what would be.

    Texts with unusual characters thus do not read back as they were: samples.parquet has them exactly.
    """
    if not isinstance(value, str):
        return "" if value is None else str(value)
    text = one_line(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def write_names(path: Path, names: Iterable[str]) -> None:
    """Write one name a line, all or nothing; see `name_line`."""
    write_text(path, "".join(f"{name_line(name)}\n" for name in names))


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table as CSV in UTF-8, all or nothing; see `csv_cell`."""
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([csv_cell(value) for value in row] for row in rows)
