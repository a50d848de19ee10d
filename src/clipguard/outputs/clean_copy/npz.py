"""An .npz file without the dropped rows."""

import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from clipguard.data.listing import Listing
from clipguard.errors import ClipguardError, reason_of
from clipguard.safety.limits import Limits


def copy_npz(listing: Listing, rows: Int64[np.ndarray, "m"], part: Path, limits: Limits) -> None:
    """Write a file of the same name: each array with one entry a sample is cut to `rows`, others are copied.

    Raises:
        ClipguardError: an array that holds objects, is larger than the limits allow, or cannot be read.
    """
    file = Path(listing.location)
    try:
        with zipfile.ZipFile(file) as source, zipfile.ZipFile(part / file.name, "w") as target:
            for member in source.infolist():
                if member.file_size > limits.array_bytes:
                    raise ValueError(f"{member.filename} unpacks to {member.file_size} bytes")
                with source.open(member) as opened:
                    array = np.lib.format.read_array(opened, allow_pickle=False)
                per_sample = array.ndim and len(array) == len(listing.ids)
                if per_sample and member.filename != "class_names.npy":
                    array = array[rows]
                entry = zipfile.ZipInfo(member.filename)
                entry.compress_type = member.compress_type
                with target.open(entry, "w", force_zip64=True) as written:
                    np.lib.format.write_array(written, array, allow_pickle=False)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise ClipguardError(
            f"{file} cannot be copied as .npz without pickles: {reason_of(error)}"
        ) from error
