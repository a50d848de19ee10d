"""Data set objects of other libraries: torchvision's and those that look like them, and Hugging Face's."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from PIL.Image import Image

from clipguard.data.listing import Failed, InMemory, Item, Listing, as_labels, fault
from clipguard.data.quiet import quiet_pillow
from clipguard.errors import ClipguardError, reason_of
from clipguard.safety.limits import Limits, read_bounded

LABEL_ATTRIBUTES = ("targets", "labels", "_labels")


@dataclass(frozen=True, slots=True)
class PairReader(InMemory):
    """Reads an indexable of (image, label) pairs."""

    data: Any

    def read(self, rows: Int64[np.ndarray, "m"]) -> Iterator[Item]:
        """Return the first of each pair."""
        for row in rows:
            yield self._fetch(int(row))

    def _fetch(self, row: int) -> Item:
        try:
            with quiet_pillow():
                image = self.data[row][0]
                if isinstance(image, Image):
                    image.load()
        except Exception as error:  # The object decodes by itself, so that any fault of the image shows here.
            return Failed(reason_of(error))
        if not isinstance(image, (Image, np.ndarray, bytes)):
            raise ClipguardError(
                f"{type(self.data).__name__}[{row}] has {type(image).__name__} for an image: "
                "give a data set that returns PIL images or uint8 arrays"
            )
        return image


def _pair_labels(data: Any, location: str) -> Int64[np.ndarray, "n"]:
    """Return the labels that the object lists; where it lists none, those of all its pairs."""
    for name in LABEL_ATTRIBUTES:
        labels = getattr(data, name, None)
        if labels is not None and len(labels) == len(data):
            return as_labels(labels, location)
    try:
        return as_labels([data[row][1] for row in range(len(data))], location)
    except (TypeError, IndexError, KeyError, OSError) as error:
        raise ClipguardError(f"{location} is no list of (image, label) pairs: {reason_of(error)}") from error


def _pair_names(data: Any) -> tuple[str, ...] | None:
    classes = getattr(data, "classes", None)
    if not isinstance(classes, (list, tuple)) or not classes:
        return None
    # ImageNet lists synonyms; the first is the usual one.
    names = [entry[0] if isinstance(entry, tuple) and entry else entry for entry in classes]
    return tuple(names) if all(isinstance(name, str) for name in names) else None


def list_pairs(data: Any) -> Listing:
    """Return a torchvision data set, or anything else that has a length and gives (image, label) pairs.

    Raises:
        ClipguardError: it has a transform, is empty, or its labels are no integers.
    """
    location = f"{type(data).__name__} data set"
    for name in ("transform", "target_transform", "transforms"):
        if getattr(data, name, None) is not None:
            raise ClipguardError(f"{location} has a {name}: open it without, the images are needed as stored")
    if not len(data):
        raise ClipguardError(f"no images found in {location}")
    labels = _pair_labels(data, location)
    names = _pair_names(data)
    return Listing(
        kind="torchvision",
        location=location,
        labels=labels,
        ids=tuple(str(row) for row in range(len(labels))),
        names=names,
        reader=PairReader(data),
    )


@dataclass(frozen=True, slots=True)
class DatasetsReader(InMemory):
    """Reads the undecoded images of a `datasets.Dataset`."""

    data: Any
    column: str
    limits: Limits
    batch: int = 128

    def read(self, rows: Int64[np.ndarray, "m"]) -> Iterator[Item]:
        """Return the images' bytes, from the file that the library noted where it holds none itself."""
        for start in range(0, len(rows), self.batch):
            for entry in self.data[rows[start : start + self.batch].tolist()][self.column]:
                yield self._fetch(entry or {})

    def _fetch(self, entry: dict[str, Any]) -> Item:
        if entry.get("bytes") or not entry.get("path"):
            return entry.get("bytes") or b""
        try:
            return read_bounded(Path(entry["path"]), self.limits.file_bytes)
        except (OSError, ValueError) as error:  # The latter for a path with a NUL in it.
            return Failed(fault(error))


def _only(columns: list[str], usual: str, what: str) -> str:
    if usual in columns:
        return usual
    if len(columns) != 1:
        columns_text = ", ".join(columns) or "none"
        raise ClipguardError(
            f"datasets object must have one {what} column or one called {usual!r}, not {columns_text}"
        )
    return columns[0]


def list_datasets(data: Any, limits: Limits) -> Listing:
    """Return a Hugging Face `datasets.Dataset` with an Image and a ClassLabel column.

    Raises:
        ClipguardError: a stream, other columns, or null labels.
    """
    from datasets import ClassLabel, Dataset
    from datasets import Image as ImageFeature

    if not isinstance(data, Dataset):
        raise ClipguardError(
            f"{type(data).__name__} cannot be opened: load a datasets.Dataset that is no stream"
        )
    if not len(data):
        raise ClipguardError("no images found in datasets object: it has no rows")
    features = data.features
    image = _only([name for name, f in features.items() if isinstance(f, ImageFeature)], "image", "Image")
    named = [name for name, f in features.items() if isinstance(f, ClassLabel)]
    label = _only(named or [name for name in features if name == "label"], "label", "ClassLabel")
    plain = data.with_format(None)
    location = f"datasets object {data.info.dataset_name or ''}".strip()
    names = tuple(features[label].names) if named else None
    return Listing(
        kind="datasets",
        location=location,
        labels=as_labels(plain[label][:], location),
        ids=tuple(str(row) for row in range(len(data))),
        names=names,
        reader=DatasetsReader(
            plain.select_columns([image]).cast_column(image, ImageFeature(decode=False)), image, limits
        ),
    )
