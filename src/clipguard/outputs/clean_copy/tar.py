"""Tar shards without the files of the dropped samples."""

import tarfile
from collections import Counter
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from clipguard.data.listing import Listing
from clipguard.data.tar import TarReader
from clipguard.data.tar_groups import groups_of
from clipguard.data.tar_index import Member
from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits, opened_regular


def copy_tar(listing: Listing, rows: Int64[np.ndarray, "m"], part: Path, limits: Limits) -> None:
    """Write an archive of each shard's name with all plain files of the samples of `rows`.

    What belongs to no sample, and what is refused when it is read (pickles, links, devices), is left out.

    Raises:
        ClipguardError: a shard was cut short meanwhile, or two samples would become one in the copy.
    """
    reader = listing.reader
    assert isinstance(reader, TarReader)
    shards, offsets = reader.places[rows, 0], reader.places[rows, 1]
    order = np.argsort(shards, kind="stable")
    cuts = np.searchsorted(shards[order], np.arange(len(reader.files) + 1))
    for number, file in enumerate(reader.files):
        images = set(offsets[order[cuts[number] : cuts[number + 1]]].tolist())
        with opened_regular(file) as opened, tarfile.open(part / file.name, "w") as archive:
            for member in _members_of(file, images, limits):
                _append(archive, member, opened, file)


def _append(archive: tarfile.TarFile, member: Member, opened: BufferedReader, file: Path) -> None:
    """Append a member, piece by piece: it may be larger than the memory."""
    header = tarfile.TarInfo(member.name)
    header.size = member.size
    opened.seek(member.offset)
    try:
        archive.addfile(header, opened)
    except OSError as error:
        # The library's own, where the source ends too early; those of the system have a number.
        if error.errno is None:
            raise ClipguardError(f"{file} was cut short meanwhile: run again when it rests") from error
        raise


def _members_of(file: Path, images: set[int], limits: Limits) -> Iterator[Member]:
    """Return the plain files of the samples whose image begins at one of the offsets.

    Raises:
        ClipguardError: two samples of one key would follow each other, and be read as one.
    """
    before = None
    for group in groups_of(file, limits, Counter()):
        if not any(member.offset in images for member in group.files.values()):
            continue
        if group.key == before:
            raise ClipguardError(
                f"{file} holds two samples called {group.key!r}, which would be one in the copy: rename one "
                "and scan anew"
            )
        before = group.key
        yield from group.files.values()
