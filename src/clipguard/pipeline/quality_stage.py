"""The stage `quality`: issues of samples that nobody need have meant, beside what the scan flags."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from clipguard.data.provenance import ROWS, recorded_rows
from clipguard.pipeline.scan import Scan
from clipguard.quality.duplicates import exact_duplicates, first_of_equal, near_duplicates, neighbours
from clipguard.quality.issues import ISSUES, NO_OTHER, Issues, by_clarity
from clipguard.quality.label_errors import FEWEST_LABELS, cleanlab_version, label_errors
from clipguard.quality.odd_images import brightness, odd_brightness, odd_shapes
from clipguard.quality.outliers import outliers
from clipguard.runs import read_json, write_json, write_table
from clipguard.runs.summary import QualitySummary
from clipguard.types import StepProgress

QUALITY_FILE: Final = "quality.parquet"
"""One row an issue of a sample, the issues that matter most first, of each the clearest samples first."""

COUNTS: Final = "quality.json"

NO_CLEANLAB: Final = 'label errors were not looked for: install cleanlab by pip install "clipguard[quality]"'


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """Of n readable images: rows in the source, hashes of their bytes, heights and widths."""

    rows: Int64[np.ndarray, "n"]
    sha256: UInt8[np.ndarray, "n 32"]
    sizes: Int64[np.ndarray, "n 2"]


def assess_quality(scan: Scan, folder: Path, progress: StepProgress) -> None:
    """Write the issues of all samples, and how many there are of each kind."""
    read, n = _read(scan.context.finished["embeddings"].path), len(scan.data)
    data, embeddings, seed = scan.data, scan.context.embeddings, scan.context.seed("quality")
    steps, labels = 3 * n, scan.data.labels
    progress(0, steps)
    first = first_of_equal(read.sha256)
    near = neighbours(
        data.images,
        embeddings,
        labels,
        first == np.arange(n),
        seed,
        lambda done, total: progress(n * done // total, steps),
    )
    limits, wrong = _label_limits(n), []
    if not limits:
        wrong = label_errors(embeddings, labels, scan.num_classes, scan.partition.flagged, seed, data.groups)
    progress(2 * n, steps)
    issues = by_clarity(
        [
            *exact_duplicates(first, labels),
            *near_duplicates(near, labels),
            *wrong,
            *odd_brightness(brightness(data.images)),
            *odd_shapes(read.sizes),
            *outliers(embeddings, seed.child("outliers"), data.groups),
        ]
    )
    write_table(folder / QUALITY_FILE, _columns(scan, read.rows, issues))
    rows = np.concatenate([one.rows for one in issues])
    counts = {one.kind: len(one.rows) for one in issues if len(one.rows)}
    summary = QualitySummary(counts=counts, samples=len(np.unique(rows)), limits=limits)
    write_json(folder / COUNTS, msgspec.to_builtins(summary))
    progress(steps, steps)


def read_counts(folder: Path) -> QualitySummary:
    """Return what the stage in `folder` has counted, read back."""
    return msgspec.convert(read_json(folder / COUNTS), QualitySummary)


def _label_limits(n: int) -> list[str]:
    """Return why labels are not judged, if they are not."""
    if cleanlab_version() is None:
        return [NO_CLEANLAB]
    if n < FEWEST_LABELS:
        return [f"label errors were not looked for: {n:,} samples are too few, {FEWEST_LABELS} are needed"]
    return []


def _read(folder: Path) -> _Read:
    """Return what the stage `embeddings` has noted of the readable images."""
    rows, hashes, sizes, start = [], bytearray(), [], 0
    for file in sorted((folder / ROWS).glob("*.parquet")):
        recorded = recorded_rows(file)
        places = recorded.readable
        rows.append(start + places)
        hashes += b"".join(recorded.sha256[place] for place in places)
        sizes.append(recorded.sizes[places])
        start += len(recorded.ids)
    sha256 = np.frombuffer(hashes, np.uint8).reshape(-1, 32)
    return _Read(rows=np.concatenate(rows), sha256=sha256, sizes=np.concatenate(sizes))


def _columns(scan: Scan, source_rows: Int64[np.ndarray, "n"], issues: list[Issues]) -> dict[str, Any]:
    """Return the columns of `QUALITY_FILE`; what does not apply is -1 or empty."""
    rows, others, score, seeming = (
        np.concatenate([getattr(one, name) for one in issues])
        for name in ("rows", "others", "score", "labels")
    )
    # What is at the last place stands for "none".
    ids, names = np.array([*scan.data.ids, ""], object), np.array([*scan.data.class_names, ""], object)
    labels = np.append(scan.data.labels, NO_OTHER)
    places = np.append(source_rows, NO_OTHER)
    kinds = [one.kind for one in issues for _ in one.rows]
    other_names = names[np.where(others == NO_OTHER, seeming, labels[others])]
    words = [
        f"{ISSUES[kind].meaning}{': ' if name else ''}{name}"
        for kind, name in zip(kinds, other_names, strict=True)
    ]
    return {
        "issue": _texts(kinds),
        "row": places[rows],
        "id": _texts(ids[rows]),
        "given_label": _texts(names[labels[rows]]),
        "other_row": places[others],
        "other_id": _texts(ids[others]),
        "other_label": _texts(other_names),
        "score": score,
        "words": _texts(words),
    }


def _texts(values: Iterable[str]) -> Sequence[str] | Shaped[np.ndarray, "0"]:
    """Return texts as a table takes them: without any, an array still says that they are texts."""
    return list(values) or np.zeros(0, "U1")
