"""What every kind of source is reduced to before it is checked: labels, ids and something that reads."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, Shaped
from PIL.Image import Image

from clipguard.errors import reason_of


@dataclass(frozen=True, slots=True)
class Failed:
    """Stands in for an image that could not even be fetched; `reason` is one line."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row of the list of unreadable images."""

    id: str
    reason: str


# An array of any shape and type: whether it is an image is for `decode` to say.
Item = bytes | Shaped[np.ndarray, "..."] | Image | Failed


FileState = tuple[str, int, int]
"""Name, size in bytes and date of change in nanoseconds of a file."""


@runtime_checkable
class Reader(Protocol):
    """Fetches undecoded images by row number."""

    def read(self, rows: Int64[np.ndarray, "m"]) -> Iterator[Item]:
        """Return one item a row; `rows` ascends."""

    def file_states(self, rows: Int64[np.ndarray, "m"]) -> Iterator[FileState] | None:
        """Return the files that hold the rows, as the system lists them; None for what is no file."""

    def starts(self) -> Int64[np.ndarray, "g"] | None:
        """Return the rows at which reading can begin without reading what comes before; None for all."""


class InMemory:
    """What readers of objects share: no file speaks for them, and any row can be read at once."""

    __slots__ = ()

    def file_states(self, rows: Int64[np.ndarray, "m"]) -> Iterator[FileState] | None:
        """Return None: nothing but the contents tells whether they are the same."""

    def starts(self) -> Int64[np.ndarray, "g"] | None:
        """Return None: all rows."""


def file_state(path: Path, name: str) -> FileState:
    """Return the file_state of a file under a name; a file that has gone has size and date -1."""
    try:
        status = os.stat(path)
    except OSError:
        return name, -1, -1
    return name, status.st_size, status.st_mtime_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A source as found, unchecked.

    Attributes:
        kind: `folder`, `parquet`, `tar`, `arrays`, `torchvision` or `datasets`.
        location: what a message calls the source.
        labels: as given, possibly outside the names.
        ids: one a row, unique.
        reader: fetches the images.
        names: what the source calls its classes; None when it does not say.
        keys: the same as the source spells it, where the names were made readable.
        refused: what was found and cannot even become a row; it counts as unreadable.
        skipped: files that were left out by the rules, counted by reason.
        notes: what the user should know of how the source was read, one sentence each.
        groups: number of each sample's group; None where each is one of its own.
    """

    kind: str
    location: str
    labels: Int64[np.ndarray, "n"]
    ids: tuple[str, ...]
    reader: Reader
    names: tuple[str, ...] | None = None
    keys: tuple[str, ...] | None = None
    refused: tuple[Unreadable, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    groups: Int64[np.ndarray, "n"] | None = None

    @property
    def class_keys(self) -> tuple[str, ...] | None:
        """What the source itself calls its classes, as UTF-8 can hold it; None where it does not say."""
        names = self.keys or self.names
        return None if names is None else tuple(map(printable, names))


def skipped_words(skipped: Mapping[str, int]) -> str:
    """Return in words how many files were left out and why, the commonest reason first; empty for none."""
    if not skipped:
        return ""
    reasons = sorted(skipped.items(), key=lambda entry: (-entry[1], entry[0]))
    return f"{sum(skipped.values())} files left out: " + "; ".join(f"{n} {reason}" for reason, n in reasons)


def fault(error: Exception) -> str:
    """Return what the system, or `read_bounded`, says about a file, without its path."""
    return getattr(error, "strerror", None) or reason_of(error)


def printable(text: str) -> str:
    """Return `text` such that it can be written as UTF-8: file names may hold any byte."""
    return text.encode("utf-8", "backslashreplace").decode()


def unique_ids(ids: Sequence[str]) -> tuple[str, ...]:
    """Return `ids` as text that UTF-8 can hold, later doubles with `#2`, `#3` ... behind them."""
    clean = [printable(name) for name in ids]
    taken = set(clean)
    if len(taken) == len(clean):
        return tuple(clean)
    earlier: set[str] = set()
    for row, name in enumerate(clean):
        if name in earlier:
            numbered = (f"{name}#{number}" for number in itertools.count(2))
            clean[row] = next(other for other in numbered if other not in taken)
            taken.add(clean[row])
        earlier.add(name)
    return tuple(clean)
