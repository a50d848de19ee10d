"""The table of an image folder in Hugging Face's layout: `metadata.csv` or `.jsonl` beside the images."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int64

from clipguard.data.columns import USUAL, Columns, column_of, group_column
from clipguard.data.labels import Labels, group_numbers, labels_of
from clipguard.data.listing import Unreadable, fault, printable
from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits, parse_json, read_bounded

FILES: Final = ("metadata.csv", "metadata.jsonl")
PATHS: Final = ("file_name", "filename", "file", "path", "image_path", "filepath", "image")
"""What the column of paths may be called; the first is Hugging Face's."""

OUT_OF_FOLDER: Final = "a path that leads out of the folder"

Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Metadata:
    """The rows of a table whose paths lie inside the folder.

    Attributes:
        name: of the file.
        paths: relative to the folder.
        labels: one a path; None without a column of labels.
        groups: one a path; None without a column of groups.
        refused: rows whose paths lead elsewhere.
    """

    name: str
    paths: tuple[str, ...]
    labels: Labels | None
    groups: Int64[np.ndarray, "n"] | None
    refused: tuple[Unreadable, ...]

    def groups_of(self, paths: Sequence[str]) -> Int64[np.ndarray, "m"] | None:
        """Return the groups of other paths; one that the table does not name is a group of its own."""
        if self.groups is None:
            return None
        numbers = dict(zip(self.paths, self.groups.tolist(), strict=True))
        values = [numbers.get(path) for path in paths]
        return group_numbers(values, self.name)


def inside(path: object, limits: Limits) -> bool:
    """Tell whether a path from a table is relative, short, and goes up nowhere."""
    if not isinstance(path, str) or not path or len(path) > limits.name_length or "\0" in path:
        return False
    parts = path.replace("\\", "/").split("/")
    return not path.startswith(("/", "\\", "~")) and ".." not in parts and ":" not in parts[0]


def read_metadata(root: Path, limits: Limits, columns: Columns) -> Metadata | None:
    """Return the folder's table; None if there is none that names files.

    Raises:
        ClipguardError: it is damaged or too large, lacks a column that was asked for, or names a file twice.
    """
    file = next((root / name for name in FILES if (root / name).is_file()), None)
    if file is None:
        return None
    rows = _rows(file, limits)
    there = list(dict.fromkeys(name for row in rows[:100] for name in row))
    usual = next((name for name in PATHS if name in there), None)
    if usual is None and columns.image is None:
        raise ClipguardError(
            f"{file} lacks the column 'file_name': it has {', '.join(there)[:200]}; say which with "
            "--image-column (in Python: Columns), or move the file elsewhere"
        )
    image = usual if columns.image is None else column_of("image", columns, there, str(file))
    label = _label_column(columns, [name for name in there if name != image], str(file))
    group = group_column(columns, there, str(file))
    return _table(file, rows, str(image), (label, group), limits)


def _label_column(columns: Columns, there: Sequence[str], location: str) -> str | None:
    if columns.label is None and not any(name in there for name in USUAL["label"]):
        return None
    return column_of("label", columns, there, location)


def _table(
    file: Path, rows: Rows, image: str, others: tuple[str | None, str | None], limits: Limits
) -> Metadata:
    label, group = others
    kept, refused = [], []
    for number, row in enumerate(rows):
        path = row.get(image)
        if inside(path, limits):
            kept.append({**row, image: str(path).replace("\\", "/").removeprefix("./")})
        else:
            refused.append(
                Unreadable(f"{file.name}:{number}", f"{OUT_OF_FOLDER}: {printable(str(path))[:100]}")
            )
    paths = tuple(str(row[image]) for row in kept)
    if len(set(paths)) < len(paths):
        twice = Counter(paths).most_common(1)[0][0]
        raise ClipguardError(f"{file} names {twice!r} twice: keep one row of each image")
    return Metadata(
        name=file.name,
        paths=paths,
        labels=None if label is None else labels_of([row.get(label) for row in kept], str(file)),
        groups=None if group is None else group_numbers([row.get(group) for row in kept], str(file)),
        refused=tuple(refused),
    )


def _rows(file: Path, limits: Limits) -> Rows:
    try:
        text = read_bounded(file, limits.json_bytes).decode("utf-8-sig")
        return _csv(text) if file.suffix == ".csv" else _jsonl(text, limits)
    except (OSError, ValueError, csv.Error) as error:
        raise ClipguardError(f"{file} cannot be read: {fault(error)}") from error


def _csv(text: str) -> Rows:
    rows: Rows = []
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"line {reader.line_num} has another number of fields than the first line")
        rows.append(row)
    return rows


def _jsonl(text: str, limits: Limits) -> Rows:
    rows = [parse_json(line, limits) for line in text.splitlines() if line.strip()]
    odd = next((place for place, row in enumerate(rows, 1) if not isinstance(row, dict)), None)
    if odd is not None:
        raise ValueError(f"line {odd} is no JSON object")
    return rows
