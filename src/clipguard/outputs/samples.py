"""The samples of a run for those who show or use them: a run folder may be anybody's, so all is checked."""

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Shaped, UInt8

from clipguard.errors import ClipguardError
from clipguard.runs import read_table
from clipguard.types import STATES, Partition, partition_of

SAMPLES: Final = "samples.parquet"

Table = dict[str, Shaped[np.ndarray, "..."]]

_COLUMNS: Final = {
    "OUT": ("id", "label_name", "guide_label_name", "status", "reason"),
    "iuf": ("guide_nll", "early_nll", "guide_rank", "early_rank", "trigger_score", "suspicion_score"),
    "iu": ("label", "rank", "trigger"),
}
"""Kinds of numpy values, and the columns of samples.parquet that hold them."""

_STATE_OF: Final = {(name.status, name.reason): state for state, name in STATES.items()}


def read_samples(run: Path) -> tuple[Table, Partition]:
    """Return the columns of samples.parquet, and the partition that they describe.

    The partition knows states, suspicion and triggers alone.

    Raises:
        ClipguardError: the file is missing, lacks a column, or holds values that make no sense.
    """
    path = run / SAMPLES
    if not path.is_file():
        raise ClipguardError(f"run folder {run} has no {SAMPLES}: the run is not finished, run it again")
    samples = read_table(path)
    for kinds, names in _COLUMNS.items():
        for name in names:
            if name not in samples or samples[name].dtype.kind not in kinds:
                raise ClipguardError(
                    f"{path} lacks the column {name}, or it is damaged: delete the file and run again"
                )
    if not all(np.isfinite(samples[name]).all() for name in ("guide_rank", "early_rank")):
        raise ClipguardError(f"{path} has samples without a rank: delete the file and run again")
    suspicion = samples["suspicion_score"].astype(np.float64)
    partition = partition_of(_states(samples, path), suspicion, num_classes=0)
    return samples, replace(partition, trigger=samples["trigger"].astype(np.int64) - 1)


def _states(samples: Table, path: Path) -> UInt8[np.ndarray, "n"]:
    def state(status: object, reason: object) -> int:
        words = str(status), str(reason)
        if words not in _STATE_OF:
            raise ClipguardError(
                f"{path} has a sample of unknown status {words[0][:50]!r}, reason {words[1][:50]!r}: "
                "delete the file and run again"
            )
        return _STATE_OF[words]

    states = map(state, samples["status"], samples["reason"])
    return np.fromiter(states, np.uint8, len(samples["status"]))
