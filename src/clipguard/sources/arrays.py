"""Images that are numpy arrays already."""

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from clipguard.errors import ClipguardError
from clipguard.sources.listing import Item, Listing, as_labels, first_line

# An encrypted archive gives a RuntimeError, an absurd shape in a header a MemoryError.
NPZ_ERRORS = (OSError, ValueError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, slots=True)
class ArrayReader:
    """Reads rows of one array."""

    images: UInt8[np.ndarray, "n h w *c"]

    def read(self, rows: Int64[np.ndarray, "m"]) -> Iterator[Item]:
        """Return views of the images."""
        for row in rows:
            yield self.images[row]


def list_arrays(
    images: object, labels: object, names: tuple[str, ...] | None = None, location: str = "arrays"
) -> Listing:
    """Return images [n, h, w, 3] or [n, h, w] of uint8 with their labels.

    Raises:
        ClipguardError: another dtype or shape, or another number of labels than of images.
    """
    pixels = np.asarray(images)
    given = as_labels(labels, location)
    grey_or_rgb = pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] == 3)
    if pixels.dtype != np.uint8 or not grey_or_rgb or 0 in pixels.shape[1:]:
        raise ClipguardError(
            f"images of {location} must be uint8 [n, h, w, 3] or [n, h, w], "
            f"not {pixels.dtype} {list(pixels.shape)}"
        )
    if not len(pixels):
        raise ClipguardError(f"no images found in {location}")
    if len(pixels) != len(given):
        raise ClipguardError(f"{location} has {len(pixels)} images but {len(given)} labels")
    return Listing(
        kind="arrays",
        location=location,
        labels=given,
        ids=tuple(str(row) for row in range(len(given))),
        keys=names,
        names=names,
        reader=ArrayReader(pixels),
    )


def list_npz(path: Path) -> Listing:
    """Return the arrays `images` and `labels`, and `class_names` if there, of an .npz file.

    Raises:
        ClipguardError: not such a file, or arrays of another shape or type.
    """
    try:
        opened = np.load(path, allow_pickle=False)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise ValueError("it holds one bare array")
        with opened as archive:
            missing = [name for name in ("images", "labels") if name not in archive]
            if missing:
                raise ClipguardError(
                    f"{path} lacks the array {missing[0]!r}: it has {', '.join(archive)[:200]}"
                )
            images, labels = archive["images"], archive["labels"]
            names = np.asarray(archive["class_names"]) if "class_names" in archive else None
    except NPZ_ERRORS as error:
        raise ClipguardError(f"{path} cannot be read as .npz without pickles: {first_line(error)}") from error
    if names is not None and (names.ndim != 1 or names.dtype.kind != "U"):
        raise ClipguardError(f"class_names of {path} must be a list of unicode text, not {names.dtype}")
    return list_arrays(images, labels, None if names is None else tuple(names.tolist()), str(path))
