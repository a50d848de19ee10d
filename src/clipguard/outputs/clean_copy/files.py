"""An image folder without the dropped files."""

from pathlib import Path

import numpy as np
from jaxtyping import Int64

from clipguard.data.folder import FolderReader
from clipguard.data.listing import Listing
from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits


def copy_folder(listing: Listing, rows: Int64[np.ndarray, "m"], part: Path, limits: Limits) -> None:
    """Write the files of `rows` below `part`, as they lie below the source.

    Raises:
        ClipguardError: a file can no longer be read.
    """
    reader = listing.reader
    assert isinstance(reader, FolderReader)
    for row, content in zip(rows.tolist(), reader.read(rows), strict=True):
        if not isinstance(content, bytes):
            raise ClipguardError(f"{listing.ids[row]!r} of {listing.location} can no longer be read")
        file = part / reader.paths[row]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
