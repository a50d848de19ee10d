"""`ImageSource`: a labelled image data set that has been listed and checked, but not decoded."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from PIL.Image import Image

from clipguard.data.class_names import Classes, class_names, naming_note
from clipguard.data.columns import NO_COLUMNS, Columns
from clipguard.data.finding import expanded, listing_of
from clipguard.data.listing import Failed, Item, Reader, Unreadable
from clipguard.data.paths import sample_paths
from clipguard.errors import ClipguardError, one_line
from clipguard.safety.limits import Limits


# Without slots, since `cached_property` needs a place; without ==, which arrays do not answer by one bool.
@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSource:
    """A labelled image data set: everything but the images is in memory.

    Attributes:
        kind: `folder`, `parquet`, `tar`, `arrays`, `torchvision` or `datasets`.
        location: what a message calls the source.
        class_names: human-readable; may hold names that no label uses.
        labels: index into `class_names`.
        ids: one a row, unique and stable.
        refused: what was found and cannot even become a row; it counts as unreadable.
        limits: where reading and decoding stop.
        reader: fetches the images.
        rows: the reader's row number of each sample, ascending.
        listed: how many rows the reader has.
        opened: how another process can open the same; None for what is in memory, and for a sub-set.
        skipped: files that were left out by the rules of `docs/inputs.md`, counted by reason.
        notes: what the user should know of how the source was read, one sentence each.
        groups: number of each sample's group, which cross-validation never tears apart; None without any.
        columns: as they were given.
        class_keys: what the source itself calls its classes, whatever names were given; None without any.
    """

    kind: str
    location: str
    class_names: tuple[str, ...]
    labels: Int64[np.ndarray, "n"] = field(repr=False)
    ids: tuple[str, ...] = field(repr=False)
    refused: tuple[Unreadable, ...] = field(default=(), repr=False)
    limits: Limits = field(default=Limits(), repr=False)
    reader: Reader = field(repr=False)
    rows: Int64[np.ndarray, "n"] = field(repr=False)
    listed: int = field(repr=False)
    opened: "Opened | None" = field(default=None, repr=False)
    skipped: Mapping[str, int] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False)
    groups: Int64[np.ndarray, "n"] | None = field(default=None, repr=False)
    columns: Columns = field(default=NO_COLUMNS, repr=False)
    class_keys: tuple[str, ...] | None = field(default=None, repr=False)

    @staticmethod
    def open(
        what: object,
        *,
        classes: Classes | None = None,
        rows: tuple[int, int] | None = None,
        limits: Limits | None = None,
        columns: Columns | None = None,
    ) -> "ImageSource":
        """Return the source found at or in `what`.

        Args:
            what: path of an image folder, a Parquet or .tar file, a folder of such shards, a pattern of
                shards such as data-{000..009}.tar, or an .npz file; an (images, labels) pair of arrays, or
                a mapping or table with such columns; a torchvision-like data set; a `datasets.Dataset`.
            classes: names in label order, or by folder name or label number, or a .txt or .json file of them.
            rows: first and one past the last row to keep.
            limits: bounds on hostile input.
            columns: of images, labels and groups; by default, those that are usually called so.

        Raises:
            ClipguardError: what is wrong with the input, in one line.
        """
        bounds, chosen = limits or Limits(), columns or NO_COLUMNS
        if isinstance(classes, (str, Path)):
            # Another process may work elsewhere.
            classes = expanded(classes).absolute()
        listing = listing_of(what, bounds, chosen)
        start, stop = rows if rows is not None else (0, len(listing.labels))
        if not 0 <= start < stop <= len(listing.labels):
            raise ClipguardError(
                f"rows {start}:{stop} are not in {listing.location}, which has {len(listing.labels)} rows"
            )
        names = class_names(listing, classes, bounds)
        source = ImageSource(
            kind=listing.kind,
            location=listing.location,
            class_names=names,
            labels=listing.labels[start:stop],
            ids=listing.ids[start:stop],
            refused=listing.refused,
            limits=bounds,
            reader=listing.reader,
            rows=np.arange(start, stop),
            listed=len(listing.labels),
            opened=Opened(expanded(what).absolute(), classes, rows, bounds, chosen)
            if isinstance(what, (str, Path))
            else None,
            skipped=listing.skipped,
            notes=tuple(map(one_line, (*listing.notes, *naming_note(listing, classes, names)))),
            groups=None if listing.groups is None else listing.groups[start:stop],
            columns=chosen,
            class_keys=listing.class_keys,
        )
        _check_labels(source)
        return source

    def __len__(self) -> int:
        """Return n."""
        return len(self.labels)

    @property
    def empty_classes(self) -> tuple[str, ...]:
        """The names that no label uses."""
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        return tuple(name for name, count in zip(self.class_names, counts, strict=True) if not count)

    @property
    def paths(self) -> tuple[str, ...]:
        """The file of each image, as `samples.parquet` names it; empty texts where there is none."""
        return sample_paths(self.kind, self.ids, self.reader, self.rows)

    @cached_property
    def key(self) -> str:
        """SHA-256 over labels, class names, ids, and what a listing says of the contents, which are not read.

        A file whose contents change keeps neither its size nor its date. What is no file is hashed itself.
        """
        return self.key_now()

    def key_now(self) -> str:
        """Return the key as the files are at this moment."""
        digest = self._hashed_rows()
        file_states = self.reader.file_states(self.rows)
        if file_states is None:
            return self.fingerprint
        for file_state in file_states:
            _update(digest, json.dumps(file_state).encode())
        return digest.hexdigest()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the undecoded images, labels, class names and ids; reads everything once."""
        return self.fingerprint_of(contents_of(item).sha256 for item in self.read(range(len(self))))

    def fingerprint_of(self, contents: Iterable[bytes]) -> str:
        """Return the fingerprint, given the hash of each undecoded image in order."""
        digest = self._hashed_rows()
        for one in contents:
            _update(digest, one)
        return digest.hexdigest()

    def _hashed_rows(self) -> "hashlib._Hash":
        digest = hashlib.sha256()
        _update(digest, self.labels.astype("<i8").tobytes())
        _update(digest, json.dumps(self.class_names).encode())
        for name in self.ids:
            _update(digest, name.encode("utf-8", "surrogatepass"))
        if self.groups is not None:
            _update(digest, self.groups.astype("<i8").tobytes())
        return digest

    @cached_property
    def starts(self) -> Int64[np.ndarray, "m"]:
        """The rows at which reading can begin without reading what comes before, the first among them."""
        starts = self.reader.starts()
        if starts is None:
            return np.arange(len(self))
        return np.unique(np.searchsorted(self.rows, starts[starts <= self.rows[-1]]))

    def read(self, rows: Int64[np.ndarray, "m"] | range) -> Iterator[Item]:
        """Return the undecoded images at `rows`, which ascend, one by one."""
        return self.reader.read(self.rows[_ascending(rows)])

    @property
    def whole(self) -> bool:
        """Whether all rows that were listed are in it."""
        return len(self.rows) == self.listed

    def take(self, rows: Int64[np.ndarray, "m"] | range) -> "ImageSource":
        """Return the sub-set at `rows`, which ascend; its class names stay, its fingerprint is its own."""
        chosen = _ascending(rows)
        return replace(
            self,
            labels=self.labels[chosen],
            ids=tuple(self.ids[row] for row in chosen),
            rows=self.rows[chosen],
            opened=None,
            groups=None if self.groups is None else self.groups[chosen],
        )


@dataclass(frozen=True, slots=True)
class Opened:
    """The arguments of `ImageSource.open` for a path."""

    path: Path
    classes: Classes | None
    rows: tuple[int, int] | None
    limits: Limits
    columns: Columns

    def open(self) -> ImageSource:
        """Return the source.

        Raises:
            ClipguardError: as `ImageSource.open`.
        """
        return ImageSource.open(
            self.path, classes=self.classes, rows=self.rows, limits=self.limits, columns=self.columns
        )


def _check_labels(source: ImageSource) -> None:
    labels, count = source.labels, len(source.class_names)
    outside = np.flatnonzero((labels < 0) | (labels >= count))
    if len(outside):
        row = outside[0]
        raise ClipguardError(
            f"{len(outside)} labels of {source.location} are outside its {count} class names, "
            f"first {labels[row]} of {source.ids[row]!r}: correct the labels or give classes"
        )
    if len(np.unique(labels)) < 2:
        raise ClipguardError(
            f"{source.location} has images of one class only, {source.class_names[labels[0]]!r}: "
            "give two or more"
        )


def _ascending(rows: Int64[np.ndarray, "m"] | range) -> Int64[np.ndarray, "m"]:
    array = np.asarray(rows, np.int64)
    if len(array) and (array[0] < 0 or (np.diff(array) <= 0).any()):
        raise ValueError("rows must ascend: Parquet is read from front to back")
    return array


def _update(digest: "hashlib._Hash", part: bytes) -> None:
    # The length in front, so that two parts cannot trade bytes.
    digest.update(len(part).to_bytes(8, "little"))
    digest.update(part)


@dataclass(frozen=True, slots=True)
class Contents:
    """Size in bytes and sha256 of an undecoded image; of one that could not be fetched, 0 and zeros."""

    size: int
    sha256: bytes


def contents_of(item: Item) -> Contents:
    """Return size and hash of an undecoded image; those of a file are the file's own."""
    if isinstance(item, Failed):
        return Contents(0, bytes(32))
    if isinstance(item, np.ndarray):
        item = repr(item.shape).encode() + item.tobytes()
    if isinstance(item, Image):
        item = repr((item.mode, item.size, item.getpalette())).encode() + item.tobytes()
    return Contents(len(item), hashlib.sha256(item).digest())
