"""Tables in memory: a mapping with columns, a pandas or a polars frame."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipguard.data.arrays import list_arrays
from clipguard.data.columns import Columns, column_of, group_column
from clipguard.data.folder_layout import SPLIT
from clipguard.data.listing import Listing
from clipguard.errors import ClipguardError


def list_mapping(what: Mapping[Any, Any], columns: Columns) -> Listing:
    """Return a mapping with columns of images and labels, such as {"images": ..., "labels": ...}.

    Raises:
        ClipguardError: it holds several data sets, or other columns.
    """
    names = [str(name) for name in what]
    values = list(what.values())
    splits = all(SPLIT.fullmatch(name) for name in names)
    if values and (splits or all(hasattr(value, "features") for value in values)):
        listed = ", ".join(names)[:200]
        raise ClipguardError(f"{type(what).__name__} holds several data sets: open one of {listed}")
    return _listed(dict(zip(names, values, strict=True)), columns, type(what).__name__)


def list_frame(frame: Any, columns: Columns) -> Listing:
    """Return a pandas or polars frame with columns of images and labels.

    Raises:
        ClipguardError: other columns, or cells that hold no images.
    """
    names = [str(name) for name in frame.columns]
    if len(set(names)) < len(names):
        raise ClipguardError(f"{type(frame).__name__} has several columns of one name: rename them")
    lists = {name: _values(frame[given]) for name, given in zip(names, frame.columns, strict=True)}
    return _listed(lists, columns, type(frame).__name__)


def _values(column: Any) -> list[Any]:
    values: list[Any] = column.to_list()
    return values


def _listed(table: Mapping[str, Any], columns: Columns, location: str) -> Listing:
    image = column_of("image", columns, list(table), location)
    label = column_of("label", columns, [name for name in table if name != image], location)
    group = group_column(columns, list(table), location)
    return list_arrays(
        _images(table[image], f"column {image!r} of {location}"),
        table[label],
        location=location,
        groups=None if group is None else list(table[group]),
    )


def _images(values: Any, location: str) -> Any:
    """Return a column's images; of cells such as `datasets` makes, {"bytes": ..., "path": ...}, the bytes."""
    if not isinstance(values, (list, tuple)):
        return values
    images = [cell.get("bytes") if isinstance(cell, Mapping) else cell for cell in values]
    if any(isinstance(cell, (str, Path)) for cell in images):
        raise ClipguardError(
            f"{location} holds paths: write the table as metadata.csv into the folder of the images, with a "
            "column file_name, and open the folder"
        )
    if any(cell is None for cell in images):
        row = next(row for row, cell in enumerate(images) if cell is None)
        raise ClipguardError(f"{location} has no image in row {row}: drop these rows")
    return images
