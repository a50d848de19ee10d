"""Tar shards as webdataset names them: `key.jpg` beside `key.cls` or `key.json`, one after the other.

The archives are indexed once and then read by offset: nothing is extracted, nothing is unpickled.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Int64

from clipguard.data.folder import IMAGE_SUFFIXES
from clipguard.data.listing import (
    Failed,
    FileState,
    Item,
    Listing,
    Unreadable,
    fault,
    file_state,
    printable,
    unique_ids,
)
from clipguard.data.tar_index import Member, members
from clipguard.errors import ClipguardError, reason_of
from clipguard.safety.limits import Limits, opened_regular, parse_json

LABELS: Final = ("cls", "json")
PICKLES: Final = frozenset({"pyd", "pickle", "pkl", "pth", "pt", "ckpt", "bin", "ten", "tb"})
LABEL_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class TarReader:
    """Reads images by their place in the shards.

    Attributes:
        files: the shards.
        places: shard, offset and size of each row.
        limits: a larger file becomes `Failed`.
        names: of each row's image, inside its shard.
    """

    files: tuple[Path, ...]
    places: Int64[np.ndarray, "n 3"]
    limits: Limits
    names: tuple[str, ...]

    def read(self, rows: Int64[np.ndarray, "m"]) -> Iterator[Item]:
        """Return the images' bytes."""
        cuts = np.searchsorted(self.places[rows, 0], range(len(self.files) + 1))
        for shard, path in enumerate(self.files):
            rows_here = rows[cuts[shard] : cuts[shard + 1]]
            if not len(rows_here):
                continue
            try:
                with opened_regular(path) as opened:
                    for offset, size in self.places[rows_here, 1:]:
                        yield self._fetch(opened.fileno(), int(offset), int(size))
            except OSError as error:
                raise ClipguardError(f"{path} cannot be read as tar: {fault(error)}") from error

    def file_states(self, rows: Int64[np.ndarray, "m"]) -> Iterator[FileState]:
        """Return size and date of each shard that holds rows."""
        return (
            file_state(self.files[shard], self.files[shard].name) for shard in np.unique(self.places[rows, 0])
        )

    def starts(self) -> None:
        """Return None: the places of all images are known."""

    def _fetch(self, descriptor: int, offset: int, size: int) -> Item:
        if size > self.limits.file_bytes:
            return Failed(f"{size} bytes, more than the limit of {self.limits.file_bytes}")
        content = os.pread(descriptor, size, offset)
        return content if len(content) == size else Failed("cut short")


class _Sample(NamedTuple):
    key: str
    label: int
    offset: int
    size: int
    image: str


def _parts(member: Member) -> tuple[str, str]:
    """Return key and ending: what stands before and after the first dot of the file's name."""
    folder, slash, name = member.name.rpartition("/")
    stem, _, ending = name.partition(".")
    return folder + slash + stem, ending.lower()


def _visible(entries: Iterator[Member]) -> Iterator[Member]:
    """Return what is not hidden: some systems put a `._name` before each file, between those of one key."""
    return (member for member in entries if member.fault or member.name.rpartition("/")[2][:1] != ".")


def _last(ending: str) -> str:
    return ending.rpartition(".")[2]


def _refusal(member: Member) -> str:
    """Return why a member is not even looked at; empty for one that may be."""
    if member.fault:
        return member.fault
    return "a pickle, which is never loaded" if _last(_parts(member)[1]) in PICKLES else ""


def _label(descriptor: int, member: Member, limits: Limits) -> int:
    """Return the label that a .cls (an integer) or .json file (its `label` or `cls`) holds.

    Raises:
        ValueError: it holds none.
    """
    if member.size > LABEL_BYTES:
        raise ValueError(f"{member.size} bytes")
    content = os.pread(descriptor, member.size, member.offset)
    if _parts(member)[1] == "cls":
        digits = content.strip()
        if not (digits.isdigit() and len(digits) < 10):
            raise ValueError("no integer")
        return int(digits)
    value = parse_json(content, limits)
    label = value.get("label", value.get("cls")) if isinstance(value, dict) else None
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < 10**9:
        raise ValueError("no integer called label or cls")
    return label


def _samples(path: Path, limits: Limits) -> Iterator[_Sample | Unreadable]:
    """Return the samples of a shard in order, and the members that were refused."""
    try:
        with opened_regular(path) as opened:
            for key, group in groupby(_visible(members(path, limits)), lambda member: _parts(member)[0]):
                parts: dict[str, Member] = {}
                for member in group:
                    if reason := _refusal(member):
                        yield Unreadable(printable(f"{path.name}/{member.name}"), reason)
                    elif _parts(member)[1] in parts:
                        raise ClipguardError(f"{path} holds {member.name!r} twice: remove one")
                    else:
                        parts[_parts(member)[1]] = member
                yield from _sample(path, opened.fileno(), key, parts, limits)
    except OSError as error:
        raise ClipguardError(f"{path} cannot be read as tar: {fault(error)}") from error


def _sample(
    path: Path, descriptor: int, key: str, parts: dict[str, Member], limits: Limits
) -> Iterator[_Sample]:
    """Return the sample of the members with one key, by ending; nothing where none is an image."""
    images = [ending for ending in parts if "." + _last(ending) in IMAGE_SUFFIXES]
    if not images:
        return
    if len(images) > 1:
        raise ClipguardError(f"sample {key!r} of {path} has {len(images)} images: keep one of each")
    member = next((parts[ending] for ending in LABELS if ending in parts), None)
    if member is None:
        raise ClipguardError(f"sample {key!r} of {path} has no label: give each image KEY.cls or KEY.json")
    try:
        label = _label(descriptor, member, limits)
    except ValueError as error:
        raise ClipguardError(f"label {member.name!r} of {path} cannot be read: {reason_of(error)}") from error
    image = parts[images[0]]
    yield _Sample(key, label, image.offset, image.size, image.name)


def list_tar(files: list[Path], location: Path, limits: Limits) -> Listing:
    """Return the samples of all shards in order; only their places, labels and keys are held in memory.

    Raises:
        ClipguardError: a damaged archive, no images, or a sample with several images or without a label.
    """
    ids: list[str] = []
    labels: list[int] = []
    places: list[tuple[int, int, int]] = []
    names: list[str] = []
    refused: list[Unreadable] = []
    for number, path in enumerate(files):
        for sample in _samples(path, limits):
            if isinstance(sample, Unreadable):
                refused.append(sample)
                continue
            ids.append(sample.key)
            labels.append(sample.label)
            places.append((number, sample.offset, sample.size))
            names.append(sample.image)
            if len(ids) > limits.members:
                raise ClipguardError(f"{path} goes above the limit of {limits.members} samples")
    if not ids:
        kept_out = f", {len(refused)} files were refused" if refused else ""
        raise ClipguardError(f"no images found in {location}: expected KEY.jpg and KEY.cls{kept_out}")
    if len(set(ids)) < len(ids):
        ids = [f"{files[place[0]].name}/{key}" for key, place in zip(ids, places, strict=True)]
    return Listing(
        kind="tar",
        location=str(location),
        labels=np.array(labels, np.int64),
        ids=unique_ids(ids),
        reader=TarReader(tuple(files), np.array(places, np.int64), limits, tuple(names)),
        refused=tuple(refused),
    )
