"""The flagged samples of a run, as the writers of all formats take them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from clipguard.errors import ClipguardError
from clipguard.runs import read_rows, read_table
from clipguard.runs.samples_table import NEW, SAMPLES
from clipguard.runs.summary import RunSummary

FLAGGED: Final = "flagged"
_CONTAINERS: Final = (".tar", ".npz", ".parquet")


class FlaggedSample(NamedTuple):
    """A flagged sample by the columns of the table of samples.

    Attributes:
        id: unique name.
        path: file relative to the source, `shard.tar/name` inside a shard, or empty.
        sha256: of the encoded bytes; empty where it is not known.
        given_label: class name that the data give it.
        predicted_label: class name that the guide prefers.
        reason: trigger or label; reviewed, where a review mark alone flags it.
        poison_score: 0 to 1.
        rank: place in the list of all samples, from 1.
        trigger: number of the reconstructed trigger; 0 without one.
        new: whether it is missing in the baseline run; None without a baseline.
    """

    id: str
    path: str
    sha256: str
    given_label: str
    predicted_label: str
    reason: str
    poison_score: float
    rank: int
    trigger: int
    new: bool | None = None


def flagged_samples(columns: Mapping[str, Sequence[Any]]) -> list[FlaggedSample]:
    """Return the flagged rows of the table of samples, the most suspicious first.

    Args:
        columns: those of `FlaggedSample` and `status` by name; `new` may be missing.

    Raises:
        KeyError: a column is missing.
    """
    rows = [row for row, status in enumerate(columns["status"]) if status == FLAGGED]
    new = columns.get(NEW)
    samples = [
        FlaggedSample(
            id=str(columns["id"][row]),
            path=str(columns["path"][row]),
            sha256=str(columns["sha256"][row]),
            given_label=str(columns["given_label"][row]),
            predicted_label=str(columns["predicted_label"][row]),
            reason=str(columns["reason"][row]),
            poison_score=float(columns["poison_score"][row]),
            rank=int(columns["rank"][row]),
            trigger=int(columns["trigger"][row]),
            new=None if new is None else bool(new[row]),
        )
        for row in rows
    ]
    return sorted(samples, key=lambda sample: sample.rank)


def file_of(sample: FlaggedSample, summary: RunSummary) -> str:
    """Return where the sample's bytes lie, as the source was given: folder, shard or table included."""
    location = summary.data.location
    if not sample.path:
        return location
    # A path inside a shard begins with the shard's own name.
    within, _, name = location.rpartition("/")
    container = name.endswith(_CONTAINERS) or "{" in name
    folder = within if container else location.rstrip("/")
    return f"{folder}/{sample.path}" if folder else sample.path


def read_flagged(run: Path) -> list[FlaggedSample]:
    """Return the flagged samples of a finished run, the most suspicious first.

    Raises:
        ClipguardError: the table of samples is missing or damaged, or lacks a column.
    """
    path = run / SAMPLES
    there = read_table(path, ("status",))
    if "status" not in there:
        raise ClipguardError(f"{path} lacks the column status: delete it and run again")
    names = [*FlaggedSample._fields[:-1], "status", NEW]
    columns = read_rows(path, np.flatnonzero(there["status"] == FLAGGED), names)
    try:
        return flagged_samples(columns)
    except (KeyError, TypeError, ValueError) as error:
        raise ClipguardError(
            f"{path} lacks the column {error}, or it is damaged: delete it and run again"
        ) from error
