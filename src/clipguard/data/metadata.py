"""The table of an image folder in Hugging Face's layout: `metadata.csv` or `.jsonl` beside the images."""

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, NamedTuple

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
TABLE_TIMES: Final = 32
"""A table may be as many times as large as one JSON text: by default 512 MiB, for some million images."""
FIRST: Final = 100
"""Records that are looked at to see which columns there are."""


class Record(NamedTuple):
    """What a table says of one image, and its text as it stands there; the line of names has no `fields`."""

    text: str
    fields: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Metadata:
    """The rows of a table whose paths lie inside the folder.

    Attributes:
        name: of the file.
        column: of the paths.
        paths: relative to the folder.
        labels: one a path; None without a column of labels.
        groups: one a path; None without a column of groups.
        refused: rows whose paths lead elsewhere.
    """

    name: str
    column: str
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


def inside_path(path: object, limits: Limits) -> str | None:
    """Return a path from a table in plain form; None for one that is not relative, is long or goes up.

    The plain form is what is checked: `.//home/x.png` is `/home/x.png` without its first two characters.
    """
    if not isinstance(path, str) or len(path) > limits.name_length or "\0" in path:
        return None
    plain = path.replace("\\", "/")
    while plain.startswith("./"):
        plain = plain[2:]
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    try:
        os.fsencode(plain)
    except UnicodeEncodeError:  # Half a character, which JSON can hold and no file name can.
        return None
    if not parts or plain.startswith(("/", "~")) or ".." in parts or ":" in parts[0]:
        return None
    return "/".join(parts)


def inside(path: object, limits: Limits) -> bool:
    """Tell whether a path from a table is relative, short, and goes up nowhere."""
    return inside_path(path, limits) is not None


def read_metadata(root: Path, limits: Limits, columns: Columns) -> Metadata | None:
    """Return the folder's table; None if there is none that names files.

    Raises:
        ClipguardError: it is damaged or too large, lacks a column that was asked for, or names a file twice.
    """
    file = next((root / name for name in FILES if (root / name).is_file()), None)
    if file is None:
        return None
    there, records = opened_table(file, limits)
    image = (
        path_column(there, file) if columns.image is None else column_of("image", columns, there, str(file))
    )
    label = _label_column(columns, [name for name in there if name != image], str(file))
    group = group_column(columns, there, str(file))
    return _table(file, records, image, (label, group), limits)


def path_column(there: Sequence[str], file: Path) -> str:
    """Return the column of paths by its usual names.

    Raises:
        ClipguardError: none is there.
    """
    for name in PATHS:
        if name in there:
            return name
    raise ClipguardError(
        f"{file} lacks the column 'file_name': it has {', '.join(there)[:200]}; say which with "
        "--image-column (in Python: Columns), or move the file elsewhere"
    )


def _label_column(columns: Columns, there: Sequence[str], location: str) -> str | None:
    if columns.label is None and not any(name in there for name in USUAL["label"]):
        return None
    return column_of("label", columns, there, location)


def _table(
    file: Path, records: Iterable[Record], image: str, others: tuple[str | None, str | None], limits: Limits
) -> Metadata:
    label, group = others
    paths: list[str] = []
    labels, groups, refused = [], [], []
    rows = (record.fields for record in records if record.fields is not None)
    for number, row in enumerate(rows):
        if number == limits.members:
            raise ClipguardError(
                f"{file} holds more rows than the limit of {limits.members}: open a part of it"
            )
        path = inside_path(row.get(image), limits)
        if path is None:
            odd = printable(str(row.get(image)))[:100]
            refused.append(Unreadable(f"{file.name}:{number}", f"{OUT_OF_FOLDER}: {odd}"))
            continue
        paths.append(path)
        labels.append(row.get(label or ""))
        groups.append(row.get(group or ""))
    if len(set(paths)) < len(paths):
        twice = Counter(paths).most_common(1)[0][0]
        raise ClipguardError(f"{file} names {twice!r} twice: keep one row of each image")
    return Metadata(
        name=file.name,
        column=image,
        paths=tuple(paths),
        labels=None if label is None else labels_of(labels, str(file)),
        groups=None if group is None else group_numbers(groups, str(file)),
        refused=tuple(refused),
    )


def opened_table(file: Path, limits: Limits) -> tuple[list[str], Iterator[Record]]:
    """Return the columns that the first records have, and all records, which are read when asked for.

    Raises:
        ClipguardError: it is damaged or too large; while the records are read, too.
    """
    records = _records(file, limits)
    first = list(islice(records, FIRST))
    there = list(dict.fromkeys(name for record in first for name in record.fields or ()))
    return there, chain(first, records)


def _records(file: Path, limits: Limits) -> Iterator[Record]:
    most = TABLE_TIMES * limits.json_bytes
    try:
        if (size := file.stat().st_size) > most:
            raise ValueError(
                f"{size} bytes, more than the limit of {most}, which is {TABLE_TIMES} times "
                "--limits.json-bytes: raise that (in Python: Limits)"
            )
        content = io.BytesIO(read_bounded(file, most))
        if file.suffix == ".csv":
            yield from _csv(io.TextIOWrapper(content, "utf-8-sig", newline=""))
        else:
            # Other marks that end a line in some readers may stand inside a text of JSON.
            yield from _jsonl(io.TextIOWrapper(content, "utf-8-sig", newline="\n"), limits)
    except (OSError, ValueError, csv.Error) as error:
        raise ClipguardError(f"{file} cannot be read: {fault(error)}") from error


def _csv(lines: Iterable[str]) -> Iterator[Record]:
    taken: list[str] = []
    reader = csv.reader(_noted(lines, taken), strict=True)
    names: list[str] = []
    for cells in reader:
        text = "".join(taken)
        taken.clear()
        if names and cells and len(cells) != len(names):
            raise ValueError(f"line {reader.line_num} has another number of fields than the first line")
        yield Record(text, dict(zip(names, cells, strict=True)) if names and cells else None)
        names = names or _column_names(cells)


def _noted(lines: Iterable[str], taken: list[str]) -> Iterator[str]:
    """Return the lines, each noted in `taken` as well: a record of a .csv may have several."""
    for line in lines:
        taken.append(line)
        yield line


def _column_names(cells: list[str]) -> list[str]:
    """Return the names in the first line of a .csv.

    Raises:
        ValueError: one stands there twice: some readers take the first such column, some the last.
    """
    if twice := [name for name, count in Counter(cells).items() if name and count > 1]:
        raise ValueError(f"its first line names the column {twice[0]!r} twice: rename one")
    return cells


def _jsonl(lines: Iterable[str], limits: Limits) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        fields = parse_json(line, limits) if line.strip() else None
        if line.strip() and not isinstance(fields, dict):
            raise ValueError(f"line {number} is no JSON object")
        yield Record(line, fields)
