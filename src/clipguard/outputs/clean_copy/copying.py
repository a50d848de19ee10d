"""The copy as a whole: the source is compared with what was scanned, then copied by its format."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, Shaped

from clipguard.data.arrays import ArrayReader
from clipguard.data.columns import NO_COLUMNS, Columns
from clipguard.data.finding import listing_of
from clipguard.data.folder import FolderReader
from clipguard.data.labels import Labels, same_classes
from clipguard.data.listing import Listing
from clipguard.data.parquet import ParquetReader
from clipguard.data.provenance import (
    INPUTS,
    class_keys_of,
    columns_as_recorded,
    limits_as_recorded,
    recorded_source,
)
from clipguard.data.source import contents_of
from clipguard.data.tar import TarReader
from clipguard.errors import ClipguardError
from clipguard.outputs.clean_copy.files import copy_folder
from clipguard.outputs.clean_copy.npz import copy_npz
from clipguard.outputs.clean_copy.parquet import copy_parquet
from clipguard.outputs.clean_copy.tar import copy_tar
from clipguard.outputs.kept import KeptSamples
from clipguard.runs import RunFolder
from clipguard.runs.files import new_folder
from clipguard.safety.limits import Limits
from clipguard.types import Progress

COMPARE: Final = "compare the source with what was scanned"
COPY: Final = "copy what is kept"

Copier = Callable[[Listing, Int64[np.ndarray, "m"], Path, Limits], None]
"""Writes the rows of a listing, which ascend, into a folder."""

_COPIERS: Final[Mapping[type, Copier]] = {
    FolderReader: copy_folder,
    ParquetReader: copy_parquet,
    TarReader: copy_tar,
    ArrayReader: copy_npz,
}


class CleanCopy(NamedTuple):
    """What was written: the samples, those of the source that no scan knows, and classes that lost all."""

    samples: int
    not_scanned: int
    emptied: tuple[str, ...]


def write_clean_copy(
    run: Path, source: Path, out: Path, choice: KeptSamples, progress: Progress, limits: Limits | None = None
) -> CleanCopy:
    """Write the kept samples of `source` into the new folder `out`, whole or not at all.

    What the run has not read is left out: images that cannot be read, and those that came later.

    Args:
        run: the run folder.
        source: the data that was scanned.
        out: new or empty folder; a file of data becomes a file of the same name in it.
        choice: which samples are kept.
        progress: called with (step, done, total).
        limits: bounds on what source and run may cost; a run with looser ones is refused.

    Raises:
        ClipguardError: the source is not the one that was scanned, nothing is kept, or `out` is not new.
    """
    if not choice.kept.any():
        raise ClipguardError(f"no sample of run {run} would be kept: nothing is written")
    _refuse_overlap(source, out)
    folder = RunFolder.read(run)
    bounds, columns = _reading(folder, limits or Limits())
    listing = listing_of(source, bounds, columns)
    rows = _rows_of(listing, choice, source)
    _compare_labels(listing, rows, Labels(choice.samples["label"], class_keys_of(folder.manifest)))
    states = _states(listing)
    _compare(listing, rows, choice.samples["sha256"], progress)
    kept = np.sort(rows[choice.kept])
    progress(COPY, 0, len(kept))
    with new_folder(out) as part:
        _COPIERS[type(listing.reader)](listing, kept, part, bounds)
        if _states(listing) != states:
            raise ClipguardError(f"{source} changed while it was being copied: run again when it rests")
    progress(COPY, len(kept), len(kept))
    return CleanCopy(len(kept), len(listing.ids) - len(rows), _emptied(choice.samples, choice.kept))


def _refuse_overlap(source: Path, out: Path) -> None:
    first, second = source.resolve(), out.resolve()
    if second.is_relative_to(first) or first.is_relative_to(second):
        raise ClipguardError(f"{out} and the source {source} lie in one another: give another folder")


def _reading(run: RunFolder, given: Limits) -> tuple[Limits, Columns]:
    """Return limits and columns that the source is read with as it was then; those given after `clean`."""
    embeddings = run.path / "stages" / "embeddings"
    file = embeddings / INPUTS
    if not file.is_file():
        return given, NO_COLUMNS
    about = recorded_source(embeddings)
    limits = limits_as_recorded(file, about["limits"], given)
    return limits, columns_as_recorded(file, about["columns"])


def _rows_of(listing: Listing, choice: KeptSamples, source: Path) -> Int64[np.ndarray, "n"]:
    """Return the row of each sample in the listing, found by its id."""
    if type(listing.reader) not in _COPIERS:
        raise ClipguardError(f"{source} is of a kind that cannot be copied: use flagged.txt of the run")
    places = {name: row for row, name in enumerate(listing.ids)}
    rows = [places.get(name, -1) for name in choice.samples["id"]]
    if missing := [name for name, row in zip(choice.samples["id"], rows, strict=True) if row < 0]:
        raise ClipguardError(
            f"{source} lacks {len(missing):,} of {len(rows):,} samples that were scanned, such as "
            f"{missing[0]!r}: give the source of the run"
        )
    return np.array(rows, np.int64)


def _compare_labels(listing: Listing, rows: Int64[np.ndarray, "n"], scanned: Labels) -> None:
    """Refuse a source in which a sample has another label than the one that was scanned."""
    same = same_classes(Labels(listing.labels[rows], listing.class_keys), scanned)
    if not same.all():
        raise ClipguardError(
            f"{int((~same).sum()):,} labels of {listing.location} are not those that were scanned, such as "
            f"that of {listing.ids[rows[same.argmin()]]!r}: give the source of the run, or scan it anew"
        )


def _compare(
    listing: Listing, rows: Int64[np.ndarray, "n"], sha256: Shaped[np.ndarray, "n"], progress: Progress
) -> None:
    """Read every scanned sample once more and compare its hash, also of those that are dropped."""
    order = np.argsort(rows)
    items = listing.reader.read(rows[order])
    for done, (place, item) in enumerate(zip(order.tolist(), items, strict=True), 1):
        if contents_of(item).sha256.hex() != sha256[place]:
            name = listing.ids[rows[place]]
            raise ClipguardError(
                f"{name!r} of {listing.location} is not what was scanned: give the source of the run, or "
                "scan it anew"
            )
        if done % 256 == 0 or done == len(rows):
            progress(COMPARE, done, len(rows))


def _states(listing: Listing) -> list[Any]:
    """Return size and date of each file that holds samples; none of what is in memory."""
    return list(listing.reader.file_states(np.arange(len(listing.ids))) or ())


def _emptied(samples: Mapping[str, Any], kept: Bool[np.ndarray, "n"]) -> tuple[str, ...]:
    names = samples["given_label"]
    return tuple(sorted(set(names.tolist()) - set(names[kept].tolist())))
