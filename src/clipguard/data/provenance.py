"""Provenance: which images were read, with which contents, and whether they still are what they were."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Int64

from clipguard.data.columns import Columns
from clipguard.data.decode.reading import ReadRow
from clipguard.data.finding import listing_of
from clipguard.data.folder import FolderReader
from clipguard.data.labels import Labels, same_classes
from clipguard.data.listing import Listing, Unreadable
from clipguard.data.source import ImageSource, contents_of
from clipguard.errors import ClipguardError, reason_of
from clipguard.runs import Checked, read_json, read_table, write_json, write_table
from clipguard.safety.limits import Limits

INPUTS: Final = "inputs.json"
"""What was read as a whole: fingerprint, whether from files, whether all of them, limits, largest image."""

UNREADABLE: Final = "unreadable.json"
ROWS: Final = "rows"

DECIDING: Final = (
    *("file_bytes", "links", "members", "name_length", "classes", "json_bytes", "array_bytes"),
)
"""Limits that decide which samples a source has, and which of them can be fetched."""

_KEYS: Final = frozenset(
    {
        *("fingerprint", "files", "whole", "largest", "unreadable_rows", "limits", "columns"),
        *("grey_bits", "transparent"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRows:
    """What was read of some rows of a source, in their order; the reason is empty where one could be read.

    `bits` are those of grey that are in use, `transparent` says whether pixels are: see
    `clipguard.data.decode.pixels.Views`.
    """

    ids: Sequence[str]
    labels: Int64[np.ndarray, "m"]
    sizes: Int64[np.ndarray, "m 2"]
    sha256: Sequence[bytes]
    reasons: Sequence[str]
    bits: Int64[np.ndarray, "m"]
    transparent: Bool[np.ndarray, "m"]

    @property
    def readable(self) -> Int64[np.ndarray, "r"]:
        """Places of the rows that could be read."""
        return np.flatnonzero([not reason for reason in self.reasons])

    @property
    def unreadable(self) -> list[Unreadable]:
        """The other ones."""
        pairs = zip(self.ids, self.reasons, strict=True)
        return [Unreadable(name, reason) for name, reason in pairs if reason]


def rows_file(folder: Path, shard: int) -> Path:
    """Return the file of what was read of a shard's rows."""
    return folder / ROWS / f"rows_{shard:06d}.parquet"


def record_rows(file: Path, source: ImageSource, reads: Sequence[ReadRow]) -> None:
    """Write what was read: id, label, bytes and sha256 of the undecoded image, its size, its fault."""
    bad = [read.views.reason if isinstance(read.views, Unreadable) else "" for read in reads]
    sizes = [(0, 0) if isinstance(read.views, Unreadable) else read.views.size for read in reads]
    height, width = np.array(sizes, np.int64).reshape(-1, 2).T
    columns: dict[str, Any] = {
        "id": [source.ids[read.row] for read in reads],
        "label": source.labels[[read.row for read in reads]],
        "bytes": np.array([read.contents.size for read in reads], np.int64),
        "sha256": [read.contents.sha256 for read in reads],
        "height": height,
        "width": width,
        "grey_bits": np.array([getattr(read.views, "bits", 0) for read in reads], np.int64),
        "transparent": np.array([getattr(read.views, "transparent", False) for read in reads], bool),
        "reason": bad,
    }
    write_table(file, columns)


def recorded_rows(file: Path) -> RecordedRows:
    """Return what `record_rows` wrote.

    Raises:
        ClipguardError: the file is missing or damaged.
    """
    table = read_table(file)
    try:
        return RecordedRows(
            ids=table["id"].tolist(),
            labels=table["label"].astype(np.int64),
            sizes=np.stack([table["height"], table["width"]], 1),
            sha256=table["sha256"].tolist(),
            reasons=table["reason"].tolist(),
            bits=table["grey_bits"],
            transparent=table["transparent"],
        )
    except KeyError as error:
        raise ClipguardError(f"{file} lacks the column {error}: delete it and run again") from error
    except (TypeError, ValueError) as error:
        raise ClipguardError(f"{file} is damaged ({reason_of(error)}): delete it and run again") from error


def record_source(folder: Path, source: ImageSource, shards: int) -> None:
    """Write what the recorded rows of all shards say of the source as a whole, once all are there.

    Raises:
        ClipguardError: a file that holds labels changed while the source was being read.
    """
    # Labels of a folder are its paths: what was read is described. Elsewhere, labels were read before.
    of_paths = isinstance(source.reader, FolderReader) and source.reader.table is None
    if not of_paths and source.key_now() != source.key:
        raise ClipguardError(f"{source.location} changed while it was being read: run again when it rests")
    unreadable, lost, largest, first = list(source.refused), [], (0, 0), 0
    bits: Counter[int] = Counter()
    transparent = 0

    def contents() -> Iterator[bytes]:
        nonlocal largest, first, transparent
        for shard in range(shards):
            rows = recorded_rows(rows_file(folder, shard))
            unreadable.extend(rows.unreadable)
            bits.update(rows.bits[rows.bits > 0].tolist())
            transparent += int(rows.transparent.sum())
            lost.extend(np.delete(np.arange(first, first + len(rows.ids)), rows.readable).tolist())
            first += len(rows.ids)
            places = rows.sizes.prod(1)
            largest = max(
                largest, tuple(rows.sizes[places.argmax()].tolist()), key=lambda size: size[0] * size[1]
            )
            yield from rows.sha256

    about = {
        "fingerprint": source.fingerprint_of(contents()),
        "files": Path(source.location).exists(),
        "whole": source.whole,
        "largest": largest,
        "unreadable_rows": lost,
        "limits": asdict(source.limits),
        "columns": asdict(source.columns),
        "grey_bits": {str(number): bits[number] for number in sorted(bits)},
        "transparent": transparent,
    }
    write_json(folder / UNREADABLE, [{"id": entry.id, "reason": entry.reason} for entry in unreadable])
    write_json(folder / INPUTS, about)


def recorded_source(folder: Path) -> dict[str, Any]:
    """Return what `record_source` wrote.

    Raises:
        ClipguardError: the file is missing or damaged.
    """
    about = read_json(folder / INPUTS)
    if not isinstance(about, dict) or not about.keys() >= _KEYS:
        raise ClipguardError(f"{folder / INPUTS} is damaged: delete the run folder and run again")
    return about


def limits_as_recorded(file: Path, recorded: object, given: Limits) -> Limits:
    """Return the limits by which the source of a run is listed once more, as it was listed then.

    A run folder may be anybody's. So the run decides only which samples there are, and nothing that it says
    loosens a limit: that is for whoever compares.

    Args:
        file: what holds them.
        recorded: the limits of the run, by name.
        given: those of whoever compares.

    Raises:
        ClipguardError: they are damaged, or looser than those given.
    """
    try:
        limits = Limits(**recorded)  # type: ignore[arg-type]  # anything else is a TypeError
        looser = [name for name in DECIDING if getattr(limits, name) > getattr(given, name)]
    except TypeError as error:
        raise ClipguardError(f"{file} is damaged: run again in a new folder") from error
    if looser:
        named = ", ".join(f"{name} {getattr(limits, name)}" for name in looser)
        raise ClipguardError(
            f"the run was read with looser limits than these ({named}): if you trust run and data, repeat "
            "them, such as --limits.links (in Python: Limits)"
        )
    return replace(given, **{name: getattr(limits, name) for name in DECIDING})


def class_keys_of(manifest: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return what the source of a run itself calls its classes; None where the manifest does not say."""
    keys = manifest["source"].get("class_keys")
    return tuple(map(str, keys)) if isinstance(keys, list) else None


@dataclass(frozen=True, slots=True)
class CheckedInputs:
    """What became of each image that was read, and the files that are no part of the data, by reason."""

    files: Iterator[Checked]
    skipped: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Recorded:
    """The rows of all shards together."""

    ids: Sequence[str]
    sha256: Sequence[bytes]
    labels: Labels


def check_inputs(
    folder: Path, data: Path, limits: Limits | None = None, class_keys: tuple[str, ...] | None = None
) -> CheckedInputs:
    """Return what became of each image that a finished reading stage read, now looked for in or at `data`.

    An image is changed where its bytes are others, and where its label is.

    Args:
        folder: of the stage.
        data: what is said to be the same data; it is listed as the run listed it.
        limits: bounds on what `data` and the run may cost; see `limits_as_recorded`.
        class_keys: what the source itself called its classes then; without, labels are compared as numbers.

    Raises:
        ClipguardError: the stage is missing or damaged, was read from no file or with looser limits, or
            `data` cannot be listed.
    """
    files = sorted((folder / ROWS).glob("*.parquet"))
    if not files or not (folder / INPUTS).is_file():
        raise ClipguardError(f"stage {folder} has no list of its inputs: its scan is not finished")
    about = recorded_source(folder)
    bounds = limits_as_recorded(folder / INPUTS, about["limits"], limits or Limits())
    columns = columns_as_recorded(folder / INPUTS, about["columns"])
    if not about["files"]:
        raise ClipguardError(f"the run was read from no file: there is nothing to compare {data} with")
    if not data.exists():
        raise ClipguardError(f"{data} does not exist: give the data that the run was made of")
    parts = [recorded_rows(file) for file in files]
    recorded = _Recorded(
        [name for part in parts for name in part.ids],
        [one for part in parts for one in part.sha256],
        Labels(np.concatenate([part.labels for part in parts]), class_keys),
    )
    listing = listing_of(data, bounds, columns)
    return CheckedInputs(_compared(listing, recorded, whole=bool(about["whole"])), listing.skipped)


def columns_as_recorded(file: Path, recorded: object) -> Columns:
    """Return the columns that a source was read with.

    Raises:
        ClipguardError: they are damaged.
    """
    try:
        return Columns(**recorded)  # type: ignore[arg-type]  # anything else is a TypeError
    except TypeError as error:
        raise ClipguardError(f"{file} is damaged: run again in a new folder") from error


def _compared(listing: Listing, recorded: _Recorded, *, whole: bool) -> Iterator[Checked]:
    """Return what became of each image; without `whole`, those that were not read then are no addition."""
    place_of = {name: place for place, name in enumerate(recorded.ids)}
    places = np.array([place_of.get(name, -1) for name in listing.ids], np.int64)
    rows = np.arange(len(places)) if whole else np.flatnonzero(places >= 0)
    known = rows[places[rows] >= 0]
    then = Labels(recorded.labels.numbers[places[known]], recorded.labels.names)
    same_label = np.zeros(len(places), bool)
    same_label[known] = same_classes(Labels(listing.labels[known], listing.class_keys), then)
    for row, item in zip(rows.tolist(), listing.reader.read(rows), strict=True):
        name, place = listing.ids[row], places[row]
        if place < 0:
            yield Checked(path=name, status="added")
        else:
            same = same_label[row] and recorded.sha256[place] == contents_of(item).sha256
            yield Checked(path=name, status="ok" if same else "changed")
    yield from (Checked(path=name, status="missing") for name in sorted(place_of.keys() - set(listing.ids)))
