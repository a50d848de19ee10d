"""The samples of a run for those who show or use them: a run folder may be anybody's, so all is checked."""

from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
from jaxtyping import Int64, Shaped, UInt8

from clipguard.errors import ClipguardError
from clipguard.runs import read_rows, read_table
from clipguard.runs.samples_table import SAMPLES, source_order
from clipguard.types import STATES, Partition, partition_of

Table = dict[str, Shaped[np.ndarray, "..."]]

_COLUMNS: Final = {
    "OUT": ("status", "reason"),
    "iuf": ("guide_rank", "early_rank", "trigger_score", "poison_score"),
    "iu": ("row", "label", "rank", "trigger"),
}
"""Kinds of numpy values, and the columns of samples.parquet that hold them."""

TEXTS: Final = ("id", "given_label", "predicted_label")
"""Columns of texts: there may be more of them than fit in memory, and few are shown."""

_STATE_OF: Final = {(name.status, name.reason): state for state, name in STATES.items()}


Order = Literal["table", "source"]


def read_samples(run: Path, *, order: Order) -> tuple[Table, Partition]:
    """Return the numbers of samples.parquet, and the partition that it describes.

    The partition knows states, suspicion and triggers alone.

    Args:
        run: the run folder.
        order: of the rows: `table` as they lie in the file, flagged first; `source` as the source lists them.

    Raises:
        ClipguardError: the file is missing, lacks a column, or holds values that make no sense.
    """
    path = run / SAMPLES
    if not path.is_file():
        raise ClipguardError(f"run folder {run} has no {SAMPLES}: the run is not finished, run it again")
    samples = read_table(path, [name for names in _COLUMNS.values() for name in names])
    for kinds, names in _COLUMNS.items():
        for name in names:
            if name not in samples or samples[name].dtype.kind not in kinds:
                raise _damaged(path, name)
    if not all(np.isfinite(samples[name]).all() for name in ("guide_rank", "early_rank")):
        raise ClipguardError(f"{path} has samples without a rank: delete the file and run again")
    if order == "source":
        places = source_order(samples["row"])
        samples = {name: values[places] for name, values in samples.items()}
    suspicion = samples["poison_score"].astype(np.float64, copy=False)
    states = _states(samples.pop("status"), samples.pop("reason"), path)
    partition = partition_of(states, suspicion, num_classes=0)
    return samples, replace(partition, trigger=samples["trigger"].astype(np.int64) - 1)


def read_texts(run: Path, rows: Int64[np.ndarray, "m"]) -> dict[str, list[str]]:
    """Return the `TEXTS` of some rows of samples.parquet, counted as they lie in the file.

    Raises:
        ClipguardError: the file is damaged or lacks a column.
    """
    path = run / SAMPLES
    columns = read_rows(path, rows, TEXTS)
    for name in TEXTS:
        if name not in columns:
            raise _damaged(path, name)
    return {name: [str(value) for value in columns[name]] for name in TEXTS}


def _damaged(path: Path, column: str) -> ClipguardError:
    return ClipguardError(
        f"{path} lacks the column {column}, or it is damaged: delete the file and run again"
    )


def _states(
    status: Shaped[np.ndarray, "n"], reason: Shaped[np.ndarray, "n"], path: Path
) -> UInt8[np.ndarray, "n"]:
    def state(*texts: object) -> int:
        words = str(texts[0]), str(texts[1])
        if words not in _STATE_OF:
            raise ClipguardError(
                f"{path} has a sample of unknown status {words[0][:50]!r}, reason {words[1][:50]!r}: "
                "delete the file and run again"
            )
        return _STATE_OF[words]

    return np.fromiter(map(state, status, reason), np.uint8, len(status))
