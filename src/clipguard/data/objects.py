"""Data set objects that give (image, label) pairs: torchvision's, those that look like them, subsets."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Int64
from PIL.Image import Image

from clipguard.data.labels import Labels, label_values, labels_of
from clipguard.data.listing import Failed, InMemory, Item, Listing
from clipguard.data.quiet import quiet_pillow
from clipguard.errors import ClipguardError, reason_of

LABEL_ATTRIBUTES: Final = ("targets", "labels", "_labels")
PATH_ATTRIBUTES: Final = ("samples", "imgs")
"""Lists of (path, label) of torchvision's folders."""

TRANSFORMS: Final = ("transform", "target_transform", "transforms")


@dataclass(frozen=True, slots=True)
class PairReader(InMemory):
    """Reads an indexable of (image, label) pairs, whose labels must be those of the listing.

    Attributes:
        data: the object.
        given: labels as the object gave them, to compare with those of the pairs that are read.
    """

    data: Any
    given: Int64[np.ndarray, "n"] | list[str]

    def read(self, rows: Int64[np.ndarray, "m"]) -> Iterator[Item]:
        """Return the first of each pair.

        Raises:
            ClipguardError: the label of a pair is not the one that the object listed, or gave before.
        """
        for row in rows:
            yield self._fetch(int(row))

    def _fetch(self, row: int) -> Item:
        try:
            with quiet_pillow():
                image, label = self.data[row][:2]
                if isinstance(image, Image):
                    image.load()
        except Exception as error:  # The object decodes by itself, so that any fault of the image shows here.
            return Failed(reason_of(error))
        name = f"{type(self.data).__name__}[{row}]"
        if label_values([label], name)[0] != self.given[row]:
            raise ClipguardError(
                f"{name} has the label {str(label)[:80]!r}, but the data set lists or gave before "
                f"{str(self.given[row])[:80]!r}: correct .targets, or give (images, labels) as arrays"
            )
        if not isinstance(image, (Image, np.ndarray, bytes)):
            raise ClipguardError(
                f"{name} has {type(image).__name__} for an image: "
                "give a data set that returns PIL images or uint8 arrays"
            )
        return image


def _listed(data: Any, location: str) -> list[Any]:
    """Return every list of labels that the object shows beside its items, unchecked."""
    lists = []
    for name in LABEL_ATTRIBUTES:
        labels = getattr(data, name, None)
        if labels is not None and hasattr(labels, "__len__") and len(labels) == len(data):
            lists.append(label_values(labels, location))
    for name in PATH_ATTRIBUTES:
        pairs = getattr(data, name, None)
        if isinstance(pairs, list) and len(pairs) == len(data) and all(len(pair) == 2 for pair in pairs):
            lists.append(label_values([label for _, label in pairs], location))
    return [values if isinstance(values, list) else values.tolist() for values in lists]


def _gives_as_listed(data: Any) -> bool:
    """Tell whether the items are made by torchvision's own code, which gives the labels that it lists."""
    return str(getattr(type(data).__getitem__, "__module__", "")).startswith("torchvision.")


def _item_label(data: Any, row: int, lists: list[Any], location: str) -> Any:
    """Return the label of an item; of one that cannot be made, the label that is listed.

    Raises:
        ClipguardError: nothing gives it a label.
    """
    try:
        with quiet_pillow():
            return data[row][1]
    except Exception as error:  # The object decodes by itself: a damaged image will be told as unreadable.
        if lists:
            return lists[0][row]
        raise ClipguardError(f"{location} is no list of (image, label) pairs: {reason_of(error)}") from error


def _pair_labels(data: Any, location: str) -> tuple[Int64[np.ndarray, "n"] | list[str], tuple[str, ...]]:
    """Return the labels of the items, and a note where the object lists others.

    Only where torchvision's own code makes the items, and all lists agree, are they not asked one by one: the
    reader still compares every label with the item's when it reads that.
    """
    lists = _listed(data, location)
    if lists and _gives_as_listed(data) and all(labels == lists[0] for labels in lists):
        return label_values(lists[0], location), ()
    given = label_values([_item_label(data, row, lists, location) for row in range(len(data))], location)
    items = given if isinstance(given, list) else given.tolist()
    differing = max((sum(a != b for a, b in zip(items, labels, strict=True)) for labels in lists), default=0)
    if not differing:
        return given, ()
    note = (
        f"{differing} of {len(items)} labels that {location} lists (.targets or .samples) are not those of "
        "its items: the items' labels were taken"
    )
    return given, (note,)


def _parts(data: Any) -> list[Any]:
    """Return the objects around which a Subset or a ConcatDataset is, else the object itself."""
    if (inner := getattr(data, "dataset", None)) is not None and hasattr(data, "indices"):
        return _parts(inner)
    if isinstance(inners := getattr(data, "datasets", None), (list, tuple)) and inners:
        return [part for one in inners for part in _parts(one)]
    return [data]


def _pair_names(data: Any) -> tuple[str, ...] | None:
    """Return the class names of an object, or of those in it, if all have the same.

    Raises:
        ClipguardError: they have different ones.
    """
    names = {_own_names(part) for part in _parts(data)}
    if len(names) > 1:
        raise ClipguardError(
            f"{type(data).__name__} joins data sets with different class names: open them apart"
        )
    return names.pop()


def _own_names(data: Any) -> tuple[str, ...] | None:
    classes = getattr(data, "classes", None)
    if not isinstance(classes, (list, tuple)) or not classes:
        return None
    # ImageNet lists synonyms; the first is the usual one.
    names = [entry[0] if isinstance(entry, tuple) and entry else entry for entry in classes]
    return tuple(names) if all(isinstance(name, str) for name in names) else None


def list_pairs(data: Any) -> Listing:
    """Return a torchvision data set, or anything else that has a length and gives (image, label) pairs.

    Raises:
        ClipguardError: it has a transform, is empty, or its labels are of no kind that is read.
    """
    location = f"{type(data).__name__} data set"
    for part in (data, *_parts(data)):
        for name in TRANSFORMS:
            if getattr(part, name, None) is not None:
                raise ClipguardError(
                    f"{location} has a {name}: open it without, the images are needed as stored"
                )
    if not len(data):
        raise ClipguardError(f"no images found in {location}")
    given, notes = _pair_labels(data, location)
    labels: Labels = labels_of(given, location)
    return Listing(
        kind="torchvision",
        location=location,
        labels=labels.numbers,
        ids=tuple(str(row) for row in range(len(labels.numbers))),
        names=labels.names or _pair_names(data),
        reader=PairReader(data, given),
        notes=notes,
    )
