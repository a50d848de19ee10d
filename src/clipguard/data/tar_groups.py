"""Which files of a tar shard belong together, by webdataset's rule: what is read and what is copied agree."""

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

from clipguard.data.folder_layout import skip
from clipguard.data.tar_index import Member, members
from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits

PICKLES: Final = frozenset({"pyd", "pickle", "pkl", "pth", "pt", "ckpt", "bin", "ten", "tb"})


class Group(NamedTuple):
    """Entries that follow each other and have one key.

    Attributes:
        key: their names up to the first dot.
        files: the plain files in order, by what follows that dot.
        faulty: links, devices and others that are not to be read.
        pickles: which are never loaded.
    """

    key: str
    files: dict[str, Member]
    faulty: list[Member]
    pickles: list[Member]


def groups_of(path: Path, limits: Limits, skipped: Counter[str]) -> Iterator[Group]:
    """Return the groups of a shard in order; hidden files, which break none, are counted.

    Faulty entries and pickles do break them: two runs of one key around another entry are two samples.

    Raises:
        ClipguardError: a damaged archive, or two files of one name in a group.
    """
    for key, entries in groupby(_visible(members(path, limits), skipped), lambda entry: key_of(entry.name)):
        group = Group(key, {}, [], [])
        for entry in entries:
            ending = ending_of(entry.name)
            if entry.fault:
                group.faulty.append(entry)
            elif last_of(ending) in PICKLES:
                group.pickles.append(entry)
            elif ending in group.files:
                raise ClipguardError(f"{path} holds {entry.name!r} twice: remove one")
            else:
                group.files[ending] = entry
        yield group


def key_of(name: str) -> str:
    """Return a name up to the first dot behind its folder."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def ending_of(name: str) -> str:
    """Return what follows that dot, in small letters."""
    return name.rpartition("/")[2].partition(".")[2].lower()


def last_of(ending: str) -> str:
    """Return the last part of an ending: `png` of `input.png`."""
    return ending.rpartition(".")[2]


def _visible(entries: Iterator[Member], skipped: Counter[str]) -> Iterator[Member]:
    """Return what is not hidden: some systems put a `._name` before each file, between those of one key."""
    for entry in entries:
        if entry.fault or entry.name.rpartition("/")[2][:1] != ".":
            yield entry
        else:
            skip(skipped, "hidden")
