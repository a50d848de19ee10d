"""Tar shards as webdataset names them: `key.jpg` beside `key.cls` or `key.json`, one after the other.

The archives are indexed once and then read by offset: nothing is extracted, nothing is unpickled.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Int64

from clipguard.data.columns import NO_COLUMNS, USUAL, Columns
from clipguard.data.folder_layout import IMAGE_SUFFIXES, reason_of_name, skip
from clipguard.data.labels import NUMERAL, group_numbers, labels_of
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
from clipguard.data.tar_groups import Group, ending_of, groups_of, last_of
from clipguard.data.tar_index import Member
from clipguard.errors import ClipguardError, reason_of
from clipguard.safety.limits import Limits, opened_regular, parse_json

LABELS: Final = ("cls", "json")
FIELDS: Final = ("label", "cls", *USUAL["label"][1:])
"""What the label may be called in a .json file; the first that is there counts."""
PICKLE: Final = "a pickle, which is never loaded"
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
    """A sample; `named`: its image has the ending that was asked for; `differs`: its .json says otherwise."""

    key: str
    label: Any
    image: Member
    group: Any
    named: bool
    differs: bool


def _texts(descriptor: int, member: Member, limits: Limits) -> Any:
    """Return what a .json file holds, or the text of another one.

    Raises:
        ValueError: it is too long, no UTF-8 or no JSON.
    """
    if member.size > LABEL_BYTES:
        raise ValueError(f"{member.size} bytes")
    content = os.pread(descriptor, member.size, member.offset)
    if last_of(member.name.lower()) == "json":
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
    elif columns.label is not None:
        value = None
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
            for group in groups_of(path, limits, skipped):
                for member in group.faulty:
                    yield Unreadable(printable(f"{path.name}/{member.name}"), member.fault)
                yield from _pickles(path, group, skipped)
                yield from _sample(path, opened.fileno(), group, (limits, columns), skipped)
    except OSError as error:
        raise ClipguardError(f"{path} cannot be read as tar: {fault(error)}") from error


def _images(endings: Iterable[str]) -> list[str]:
    return [ending for ending in endings if "." + last_of(ending) in IMAGE_SUFFIXES]


def _of_kind(endings: Iterable[str], kind: str) -> list[str]:
    """Return the endings that are `kind` at last; `kind` alone goes before others."""
    there = [ending for ending in endings if last_of(ending) == kind]
    return [kind] if kind in there else there


def _pickles(path: Path, group: Group, skipped: Counter[str]) -> Iterator[Unreadable]:
    """Return the pickles that stand in an image's place, which is lost: beside a label, and no image there.

    Others are counted as files that are left out.
    """
    labelled = any(_of_kind(group.files, kind) for kind in LABELS)
    if not labelled or _images((*group.files, *(ending_of(member.name) for member in group.faulty))):
        skip(skipped, PICKLE, len(group.pickles))
        return
    for member in group.pickles:
        yield Unreadable(printable(f"{path.name}/{member.name}"), PICKLE)


def _sample(
    path: Path, descriptor: int, entries: Group, rules: tuple[Limits, Columns], skipped: Counter[str]
) -> Iterator[_Sample]:
    """Return the sample of a group; nothing where none of its files is an image."""
    files, (limits, columns) = entries.files, rules
    images = _images(files)
    if not images:
        for ending in files:
            skip(skipped, reason_of_name(f"x.{ending}"))
        return
    image, named = _image(path, entries.key, images, columns)
    label = _label_file(path, entries, columns)
    try:
        value = _label(_texts(descriptor, files[label], limits), columns, limits)
        group = None if columns.group is None else _group(descriptor, files, columns.group, limits)
    except ValueError as error:
        raise ClipguardError(
            f"label {files[label].name!r} of {path} cannot be read: {reason_of(error)}"
        ) from error
    differs = last_of(label) == "cls" and _differs(value, descriptor, files, limits)
    yield _Sample(entries.key, value, files[image], group, named, differs)


def _image(path: Path, key: str, images: list[str], columns: Columns) -> tuple[str, bool]:
    """Return the ending of a sample's image, and whether it is the one that was asked for.

    Raises:
        ClipguardError: it has several.
    """
    named = [ending for ending in images if columns.image in (ending, last_of(ending))]
    chosen = named or images
    if len(chosen) > 1:
        raise ClipguardError(
            f"sample {key!r} of {path} has {len(chosen)} images ({', '.join(chosen[:3])}): a key ends at the "
            "first dot of a name, so that names with more dots fall together; keep one image of each, rename "
            "them, or choose with --image-column ENDING (in Python: Columns)"
        )
    return chosen[0], bool(named)


def _label_file(path: Path, group: Group, columns: Columns) -> str:
    """Return the ending of the file that holds a sample's label; a column that is named is a field of .json.

    Raises:
        ClipguardError: none or several may.
    """
    for kind in LABELS if columns.label is None else ("json",):
        endings = _of_kind(group.files, kind)
        if len(endings) > 1:
            raise ClipguardError(
                f"sample {group.key!r} of {path} has {len(endings)} labels ({', '.join(endings[:3])}): "
                "keep one"
            )
        if endings:
            return endings[0]
    if columns.label is not None:
        raise ClipguardError(
            f"sample {group.key!r} of {path} has no .json file with the field {columns.label!r} of "
            "--label-column (in Python: Columns): add it, or leave that out to read .cls files"
        )
    around = (
        "" if "/" not in group.key else "; if folders are the classes, unpack the archive and open the folder"
    )
    raise ClipguardError(
        f"sample {group.key!r} of {path} has no label: give each image KEY.cls or KEY.json{around}"
    )


def _differs(label: Any, descriptor: int, files: dict[str, Member], limits: Limits) -> bool:
    """Tell whether a .json file holds another label than `label`; numbers and names are not compared."""
    for ending in _of_kind(files, "json"):
        try:
            other = _label(_texts(descriptor, files[ending], limits), NO_COLUMNS, limits)
        except ValueError:
            continue
        first, second = _plain(label), _plain(other)
        if type(first) is type(second) and first != second:
            return True
    return False


def _plain(label: Any) -> int | str:
    """Return a whole number in any form as such, else a text."""
    text = str(int(label) if isinstance(label, bool) else label).strip()
    number = NUMERAL.fullmatch(text)
    return int(number[1]) if number else text


def _group(descriptor: int, files: dict[str, Member], field: str, limits: Limits) -> Any:
    """Return the group of a sample: a field of its .json file.

    Raises:
        ValueError: it has none.
    """
    table = next((_texts(descriptor, files[one], limits) for one in files if last_of(one) == "json"), None)
    if not isinstance(table, dict) or field not in table:
        raise ValueError(f"no .json file with the field {field!r}, the group column")
    return table[field]


def list_tar(files: list[Path], location: Path, limits: Limits, columns: Columns = NO_COLUMNS) -> Listing:
    """Return the samples of all shards in order; only their places, labels and keys are held in memory.

    Raises:
        ClipguardError: a damaged archive, no images, a sample with several images or without a label, or a
            column that no sample has.
    """
    samples: list[_Sample] = []
    shards: list[int] = []
    refused: list[Unreadable] = []
    skipped: Counter[str] = Counter()
    for number, path in enumerate(files):
        for sample in _samples(path, limits, columns, skipped):
            if isinstance(sample, Unreadable):
                refused.append(sample)
                continue
            samples.append(sample)
            shards.append(number)
            if len(samples) > limits.members:
                raise ClipguardError(f"{path} goes above the limit of {limits.members} samples")
    _check_samples(samples, len(refused), skipped, location, columns)
    labels = labels_of(_alike([sample.label for sample in samples]), str(location))
    groups = None if columns.group is None else [sample.group for sample in samples]
    places = [(shard, one.image.offset, one.image.size) for shard, one in zip(shards, samples, strict=True)]
    return Listing(
        kind="tar",
        location=str(location),
        labels=labels.numbers,
        names=labels.names,
        ids=_ids(samples, [files[shard].name for shard in shards]),
        reader=TarReader(
            tuple(files), np.array(places, np.int64), limits, tuple(one.image.name for one in samples)
        ),
        refused=tuple(refused),
        skipped=dict(skipped),
        notes=tuple(_notes(samples, location)),
        groups=None if groups is None else group_numbers(groups, str(location)),
    )


def _check_samples(
    samples: list[_Sample], refused: int, skipped: Counter[str], location: Path, columns: Columns
) -> None:
    """Refuse a source without samples, or without the image that was asked for.

    Raises:
        ClipguardError: it is one.
    """
    if not samples:
        left = f", {refused} files were refused" if refused else ""
        left += "".join(f", {count} {reason}" for reason, count in skipped.most_common(3))
        raise ClipguardError(f"no images found in {location}: expected KEY.jpg and KEY.cls{left}")
    if columns.image is not None and not any(sample.named for sample in samples):
        endings = ", ".join(sorted({last_of(sample.image.name.lower()) for sample in samples}))
        raise ClipguardError(
            f"{location} lacks images with the ending {columns.image!r}: it has {endings}; give one of them "
            "by --image-column (in Python: Columns)"
        )


def _ids(samples: list[_Sample], shards: list[str]) -> tuple[str, ...]:
    """Return the keys, with their shards in front where some repeat."""
    ids = [sample.key for sample in samples]
    if len(set(ids)) < len(ids):
        ids = [f"{shard}/{key}" for shard, key in zip(shards, ids, strict=True)]
    return unique_ids(ids)


def _notes(samples: list[_Sample], location: Path) -> Iterator[str]:
    if differing := [sample.key for sample in samples if sample.differs]:
        yield (
            f"labels of {location} are those of .cls files; {len(differing)} of {len(samples)} samples, such "
            f"as {differing[0]!r}, have another one in .json: --label-column FIELD takes those (in Python: "
            "Columns)"
        )


def _alike(labels: list[Any]) -> list[Any]:
    """Return labels of .cls files, which are texts, and numbers of .json files as one kind."""
    if any(isinstance(label, str) for label in labels):
        return [label if isinstance(label, str) else str(label) for label in labels]
    return labels
