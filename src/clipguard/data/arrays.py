"""Images that are numpy arrays already."""

import math
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from jaxtyping import Int64, Shaped, UInt8
from PIL.Image import Image

from clipguard.data.columns import Columns, column_of, group_column
from clipguard.data.labels import group_numbers, labels_of
from clipguard.data.listing import InMemory, Item, Listing
from clipguard.errors import ClipguardError, reason_of
from clipguard.safety.limits import Limits

KINDS: Final = {"image": "u", "label": "iubfU", "group": "iufU", "class_names": "U"}
"""The arrays of an .npz file by role, and the kinds of values that each may hold."""
CHANNELS: Final = ((), (1,), (3,), (4,))
"""What may follow height and width: nothing or 1 for grey, 3 for RGB, 4 for RGBA."""
HEADERS: Final = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True, slots=True)
class ArrayReader(InMemory):
    """Reads rows of one array, or of a list of arrays, Pillow images and encoded ones that differ in size."""

    images: UInt8[np.ndarray, "n h w *c"] | Sequence[bytes | Image | UInt8[np.ndarray, "_ _ ..."]]

    def read(self, rows: Int64[np.ndarray, "m"]) -> Iterator[Item]:
        """Return views of the images."""
        for row in rows:
            yield self.images[row]


def list_arrays(
    images: object,
    labels: object,
    names: tuple[str, ...] | None = None,
    location: str = "arrays",
    groups: Sequence[object] | None = None,
) -> Listing:
    """Return uint8 images [n, h, w] or [n, h, w, 1, 3 or 4], or a list of arrays, Pillow images or bytes.

    Raises:
        ClipguardError: another dtype or shape, or another number of labels than of images.
    """
    given = labels_of(labels, location)
    if names is not None and given.names is not None:
        raise ClipguardError(
            f"{location} has class names beside labels that are texts: give the labels as indices into them"
        )
    pixels = _pixels(images, location)
    if not len(pixels):
        raise ClipguardError(f"no images found in {location}")
    if len(pixels) != len(given.numbers):
        raise ClipguardError(f"{location} has {len(pixels)} images but {len(given.numbers)} labels")
    if groups is not None and len(groups) != len(pixels):
        raise ClipguardError(f"{location} has {len(pixels)} images but {len(groups)} groups")
    return Listing(
        kind="arrays",
        location=location,
        labels=given.numbers,
        ids=tuple(str(row) for row in range(len(given.numbers))),
        names=names or given.names,
        reader=ArrayReader(pixels),
        groups=None if groups is None else group_numbers(list(groups), location),
    )


def _pixels(
    images: object, location: str
) -> UInt8[np.ndarray, "n h w *c"] | list[bytes | Image | UInt8[np.ndarray, "_ _ ..."]]:
    """Return the images as one array, or as a list where they may differ in size."""
    many = isinstance(images, (list, tuple))
    if many or (isinstance(images, np.ndarray) and images.dtype == object and images.ndim == 1):
        items = [item if isinstance(item, (bytes, Image)) else np.asarray(item) for item in images]  # type: ignore[attr-defined]  # iterable by the condition
        for row, item in enumerate(items):
            if isinstance(item, np.ndarray):
                _check_shape(item, item.shape, f"image {row} of {location}", "")
        return items
    pixels = np.asarray(images)
    _check_shape(pixels, pixels.shape[1:], f"images of {location}", "n, ")
    return pixels


def _check_shape(
    pixels: Shaped[np.ndarray, "..."], size: tuple[int, ...], what: str, first: Literal["", "n, "]
) -> None:
    if pixels.dtype != np.uint8 or len(size) < 2 or 0 in size[:2] or size[2:] not in CHANNELS:
        raise ClipguardError(
            f"{what} must be uint8 [{first}h, w] or [{first}h, w, 1, 3 or 4], "
            f"not {pixels.dtype} {list(pixels.shape)}"
        )


def list_npz(path: Path, limits: Limits, columns: Columns) -> Listing:
    """Return the arrays of images and labels, and `class_names` if there, of an .npz file.

    Raises:
        ClipguardError: not such a file, or arrays of another shape, type or size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            there = _names(archive.namelist(), path)
            image, label = (column_of(role, columns, there, str(path)) for role in ("image", "label"))
            group = group_column(columns, there, str(path))
            images = _array(archive, image, "image", limits)
            labels = _array(archive, label, "label", limits)
            names = _array(archive, "class_names", "class_names", limits) if "class_names" in there else None
            groups = None if group is None else _array(archive, group, "group", limits)
    except ClipguardError:
        raise
    except Exception as error:  # Damaged archives make zipfile and numpy raise nearly anything.
        raise ClipguardError(f"{path} cannot be read as .npz without pickles: {reason_of(error)}") from error
    if names is not None and names.ndim != 1:
        raise ClipguardError(f"class_names of {path} must be a list of unicode text, not {list(names.shape)}")
    listed = None if names is None else tuple(names.tolist())
    return list_arrays(images, labels, listed, str(path), None if groups is None else groups.ravel().tolist())


def _names(members: Sequence[str], path: Path) -> list[str]:
    """Return the names of the arrays.

    Raises:
        ClipguardError: a member is no array or two have one name: numpy may read another than is read here.
    """
    names = sorted(member.removesuffix(".npy") for member in members)
    if odd := [member for member in members if not member.endswith(".npy")]:
        raise ClipguardError(f"{path} holds {odd[0]!r}, which is no array NAME.npy: remove it")
    counts = Counter((*names, *set(members)))
    if twice := [name for name in names if counts[name] > 1]:
        raise ClipguardError(f"{path} holds two arrays called {twice[0]!r}: rename or remove one")
    return names


def _array(
    archive: zipfile.ZipFile,
    name: str,
    role: Literal["image", "label", "group", "class_names"],
    limits: Limits,
) -> Shaped[np.ndarray, "..."]:
    """Return one array; what its header says is held against the archive before anything is unpacked.

    Raises:
        ValueError: another kind of values, or a size that is above the limits or not the true one.
    """
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as opened:
        version = np.lib.format.read_magic(opened)
        if version not in HEADERS:
            raise ValueError(f"{name} has version {version[0]}.{version[1]} of the format, not 1.0 or 2.0")
        shape, _, dtype = HEADERS[version](opened)
        begins = opened.tell()
    if dtype.kind not in KINDS[role]:
        raise ValueError(f"{name} holds {str(dtype)[:50]}, not values of kind {KINDS[role]!r}")
    size = math.prod(shape) * dtype.itemsize
    # Each becomes an object of Python's, of some dozen bytes.
    rows = limits.classes if role == "class_names" else limits.members
    if shape and shape[0] > rows:
        raise ValueError(f"{name} has {shape[0]} rows, more than the limit of {rows}")
    if max(size, member.file_size) > limits.array_bytes:
        raise ValueError(f"{name} unpacks to {size} bytes, more than the limit of {limits.array_bytes}")
    if begins + size != member.file_size:
        raise ValueError(f"{name} claims {size} bytes, but {member.file_size - begins} are packed")
    with archive.open(member) as opened:
        array: Shaped[np.ndarray, ...] = np.lib.format.read_array(opened, allow_pickle=False)
    return array
