"""`datasets.Dataset` objects of Hugging Face."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from clipguard.data.columns import USUAL, Columns, column_of, group_column
from clipguard.data.labels import group_numbers, labels_of
from clipguard.data.listing import Failed, InMemory, Item, Listing, fault
from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits, read_bounded


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

    def _fetch(self, entry: dict[str, Any] | bytes) -> Item:
        if isinstance(entry, bytes):
            return entry
        if entry.get("bytes") or not entry.get("path"):
            return entry.get("bytes") or b""
        try:
            return read_bounded(Path(entry["path"]), self.limits.file_bytes)
        except (OSError, ValueError) as error:  # The latter for a path with a NUL in it.
            return Failed(fault(error))


def list_datasets(data: Any, limits: Limits, columns: Columns) -> Listing:
    """Return a Hugging Face `datasets.Dataset` with a column of images and one of labels.

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
    location = f"datasets object {data.info.dataset_name or ''}".strip()
    features = data.features
    image = _image_column(features, columns, location)
    label = _label_column(features, columns, image, location)
    group = group_column(columns, list(features), location)
    plain = data.with_format(None)
    named = isinstance(features[label], ClassLabel)
    labels = labels_of(list(plain[label][:]), location)
    encoded = plain.select_columns([image])
    if isinstance(features[image], ImageFeature):
        encoded = encoded.cast_column(image, ImageFeature(decode=False))
    return Listing(
        kind="datasets",
        location=location,
        labels=labels.numbers,
        ids=tuple(str(row) for row in range(len(data))),
        names=tuple(features[label].names) if named else labels.names,
        reader=DatasetsReader(encoded, image, limits),
        groups=None if group is None else group_numbers(list(plain[group][:]), location),
    )


def _image_column(features: Any, columns: Columns, location: str) -> str:
    """Return the column of images: of the Image type, or plain bytes where it is given.

    Raises:
        ClipguardError: none or several may be it.
    """
    from datasets import Image as ImageFeature

    images: list[str] = [name for name, feature in features.items() if isinstance(feature, ImageFeature)]
    binary = [
        name
        for name, feature in features.items()
        if getattr(feature, "dtype", "") in ("binary", "large_binary")
    ]
    if columns.image is not None:
        return column_of("image", columns, [*images, *binary], location)
    if len(images) == 1:
        return images[0]
    if not images and not binary:
        raise ClipguardError(
            f"{location} must have one Image column: cast one to datasets.Image(), of "
            f"{', '.join(features)[:200]}"
        )
    return column_of("image", columns, images or binary, location)


def _label_column(features: Any, columns: Columns, image: str, location: str) -> str:
    """Return the column of labels: the one of the ClassLabel type, else by its name.

    Raises:
        ClipguardError: none or several may be it.
    """
    from datasets import ClassLabel

    named: list[str] = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if columns.label is None and len(named) == 1:
        return named[0]
    others = [name for name in features if name != image]
    usual = [name for name in named if name in USUAL["label"]]
    return column_of("label", columns, usual if columns.label is None and usual else others, location)
