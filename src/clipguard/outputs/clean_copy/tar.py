"""Tar shards without the files of the dropped samples."""

import io
import os
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from clipguard.data.listing import Listing
from clipguard.data.tar import PICKLES, TarReader
from clipguard.data.tar_index import Member, members
from clipguard.safety.limits import Limits, opened_regular


def copy_tar(listing: Listing, rows: Int64[np.ndarray, "m"], part: Path, limits: Limits) -> None:
    """Write an archive of each shard's name with all plain files of the samples of `rows`.

    What belongs to no sample, and what is refused when it is read (pickles, links, devices), is left out.
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
                info = tarfile.TarInfo(member.name)
                info.size = member.size
                content = os.pread(opened.fileno(), member.size, member.offset)
                archive.addfile(info, io.BytesIO(content))


def _members_of(file: Path, images: set[int], limits: Limits) -> Iterator[Member]:
    """Return the plain files of the samples whose image begins at one of the offsets."""
    plain = (member for member in members(file, limits) if not member.fault and not _refused(member))
    for _, group in groupby(plain, _key):
        sample = list(group)
        if any(member.offset in images for member in sample):
            yield from sample


def _key(member: Member) -> str:
    """Return what a sample's files have in common: all before the first dot of the file's name."""
    folder, slash, name = member.name.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _refused(member: Member) -> bool:
    name = member.name.rpartition("/")[2]
    return name.startswith(".") or name.rpartition(".")[2].lower() in PICKLES
