"""Tar shards as webdataset names them: `key.jpg` beside `key.cls` or `key.json`, one after the other.

The archives are indexed once and then read by offset: nothing is extracted, nothing is unpickled.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Int64

from clipguard.data.columns import NO_COLUMNS, USUAL, Columns
from clipguard.data.folder_layout import IMAGE_SUFFIXES, reason_of_name, skip
from clipguard.data.labels import group_numbers, labels_of
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
FIELDS: Final = ("label", "cls", *USUAL["label"][1:])
"""What the label may be called in a .json file; the first that is there counts."""
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
    label: Any
    offset: int
    size: int
    image: str
    group: Any


def _parts(member: Member) -> tuple[str, str]:
    """Return key and ending: what stands before and after the first dot of the file's name."""
    folder, slash, name = member.name.rpartition("/")
    stem, _, ending = name.partition(".")
    return folder + slash + stem, ending.lower()


def _visible(entries: Iterator[Member], skipped: Counter[str]) -> Iterator[Member]:
    """Return what is not hidden: some systems put a `._name` before each file, between those of one key."""
    for member in entries:
        if member.fault or member.name.rpartition("/")[2][:1] != ".":
            yield member
        else:
            skip(skipped, "hidden")


def _last(ending: str) -> str:
    return ending.rpartition(".")[2]


def _refusal(member: Member) -> str:
    """Return why a member is not even looked at; empty for one that may be."""
    if member.fault:
        return member.fault
    return "a pickle, which is never loaded" if _last(_parts(member)[1]) in PICKLES else ""


def _texts(descriptor: int, member: Member, limits: Limits) -> Any:
    """Return what a .json file holds, or the text of another one.

    Raises:
        ValueError: it is too long, no UTF-8 or no JSON.
    """
    if member.size > LABEL_BYTES:
        raise ValueError(f"{member.size} bytes")
    content = os.pread(descriptor, member.size, member.offset)
    if _last(_parts(member)[1]) == "json":
        return parse_json(content, limits)
    return content.decode("utf-8").strip()


def _label(value: Any, columns: Columns, limits: Limits) -> Any:
    """Return the label that a .cls file (a number or text) or a .json file (one of its fields) holds.

    Raises:
        ValueError: it holds none.
    """
    if isinstance(value, dict):
        fields = FIELDS if columns.label is None else (columns.label,)
        value = next((value[name] for name in fields if name in value), None)
    if not isinstance(value, (str, bool, int, float)) or value == "":
        raise ValueError("no number or text called " + (columns.label or "label or cls"))
    if isinstance(value, str) and len(value) > limits.name_length:
        raise ValueError(f"a text of {len(value)} characters")
    return value


def _samples(
    path: Path, limits: Limits, columns: Columns, skipped: Counter[str]
) -> Iterator[_Sample | Unreadable]:
    """Return the samples of a shard in order, and the members that were refused; others are counted."""
    try:
        with opened_regular(path) as opened:
            for key, group in groupby(
                _visible(members(path, limits), skipped), lambda member: _parts(member)[0]
            ):
                parts: dict[str, Member] = {}
                for member in group:
                    if reason := _refusal(member):
                        yield Unreadable(printable(f"{path.name}/{member.name}"), reason)
                    elif _parts(member)[1] in parts:
                        raise ClipguardError(f"{path} holds {member.name!r} twice: remove one")
                    else:
                        parts[_parts(member)[1]] = member
                yield from _sample(path, opened.fileno(), (key, parts), (limits, columns), skipped)
    except OSError as error:
        raise ClipguardError(f"{path} cannot be read as tar: {fault(error)}") from error


def _sample(
    path: Path,
    descriptor: int,
    named: tuple[str, dict[str, Member]],
    rules: tuple[Limits, Columns],
    skipped: Counter[str],
) -> Iterator[_Sample]:
    """Return the sample of the members with one key, by ending; nothing where none is an image."""
    (key, parts), (limits, columns) = named, rules
    images = [ending for ending in parts if "." + _last(ending) in IMAGE_SUFFIXES]
    if not images:
        for ending in parts:
            skip(skipped, reason_of_name(f"x.{ending}"))
        return
    image = _image(path, key, images, columns)
    label = _label_part(path, key, parts)
    try:
        value = _texts(descriptor, parts[label], limits)
        group = None if columns.group is None else _group(descriptor, parts, columns.group, limits)
        member = parts[image]
        yield _Sample(key, _label(value, columns, limits), member.offset, member.size, member.name, group)
    except ValueError as error:
        raise ClipguardError(
            f"label {parts[label].name!r} of {path} cannot be read: {reason_of(error)}"
        ) from error


def _image(path: Path, key: str, images: list[str], columns: Columns) -> str:
    """Return the ending of a sample's image.

    Raises:
        ClipguardError: it has several.
    """
    chosen = [ending for ending in images if columns.image in (ending, _last(ending))] or images
    if len(chosen) > 1:
        raise ClipguardError(
            f"sample {key!r} of {path} has {len(chosen)} images ({', '.join(chosen[:3])}): a key ends at the "
            "first dot of a name, so that names with more dots fall together; keep one image of each, rename "
            "them, or choose with --image-column ENDING (in Python: Columns)"
        )
    return chosen[0]


def _label_part(path: Path, key: str, parts: dict[str, Member]) -> str:
    """Return the ending of the member that holds a sample's label.

    Raises:
        ClipguardError: none or several may.
    """
    for kind in LABELS:
        endings = [kind] if kind in parts else [ending for ending in parts if _last(ending) == kind]
        if len(endings) > 1:
            raise ClipguardError(
                f"sample {key!r} of {path} has {len(endings)} labels ({', '.join(endings[:3])}): keep one"
            )
        if endings:
            return endings[0]
    around = "" if "/" not in key else "; if folders are the classes, unpack the archive and open the folder"
    raise ClipguardError(
        f"sample {key!r} of {path} has no label: give each image KEY.cls or KEY.json{around}"
    )


def _group(descriptor: int, parts: dict[str, Member], field: str, limits: Limits) -> Any:
    """Return the group of a sample: a field of its .json file.

    Raises:
        ValueError: it has none.
    """
    table = next((_texts(descriptor, parts[one], limits) for one in parts if _last(one) == "json"), None)
    if not isinstance(table, dict) or field not in table:
        raise ValueError(f"no .json file with the field {field!r}, the group column")
    return table[field]


def list_tar(files: list[Path], location: Path, limits: Limits, columns: Columns = NO_COLUMNS) -> Listing:
    """Return the samples of all shards in order; only their places, labels and keys are held in memory.

    Raises:
        ClipguardError: a damaged archive, no images, or a sample with several images or without a label.
    """
    samples: list[_Sample] = []
    places: list[tuple[int, int, int]] = []
    names: list[str] = []
    refused: list[Unreadable] = []
    skipped: Counter[str] = Counter()
    for number, path in enumerate(files):
        for sample in _samples(path, limits, columns, skipped):
            if isinstance(sample, Unreadable):
                refused.append(sample)
                continue
            samples.append(sample)
            places.append((number, sample.offset, sample.size))
            names.append(sample.image)
            if len(samples) > limits.members:
                raise ClipguardError(f"{path} goes above the limit of {limits.members} samples")
    ids = [sample.key for sample in samples]
    if not ids:
        kept_out = f", {len(refused)} files were refused" if refused else ""
        raise ClipguardError(f"no images found in {location}: expected KEY.jpg and KEY.cls{kept_out}")
    if len(set(ids)) < len(ids):
        ids = [f"{files[place[0]].name}/{key}" for key, place in zip(ids, places, strict=True)]
    labels = labels_of(_alike([sample.label for sample in samples]), str(location))
    groups = None if columns.group is None else [sample.group for sample in samples]
    return Listing(
        kind="tar",
        location=str(location),
        labels=labels.numbers,
        names=labels.names,
        ids=unique_ids(ids),
        reader=TarReader(tuple(files), np.array(places, np.int64), limits, tuple(names)),
        refused=tuple(refused),
        skipped=dict(skipped),
        groups=None if groups is None else group_numbers(groups, str(location)),
    )


def _alike(labels: list[Any]) -> list[Any]:
    """Return labels of .cls files, which are texts, and numbers of .json files as one kind."""
    if any(isinstance(label, str) for label in labels):
        return [label if isinstance(label, str) else str(label) for label in labels]
    return labels
