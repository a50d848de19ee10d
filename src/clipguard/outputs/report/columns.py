"""The columns of samples.parquet that the page shows, read for some rows or for all."""

from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Int64, Shaped

from clipguard.outputs.samples import Table, read_texts
from clipguard.runs import read_rows, read_table
from clipguard.runs.samples_table import SAMPLES

_FURTHER: Final = ("path", "sha256")
_OPTIONAL: Final = ("q_value", "guide_nll", "early_nll")


def texts_of(run: Path, rows: Int64[np.ndarray, "m"]) -> dict[str, list[str]]:
    """Return `id`, `path`, `sha256`, `given` and `predicted` of some rows; what a run does not know is empty.

    Raises:
        ClipguardError: the file is damaged or lacks a column.
    """
    texts = read_texts(run, rows)
    further = read_rows(run / SAMPLES, rows, _FURTHER)
    empty = [""] * len(rows)
    return {
        "id": texts["id"],
        "given": texts["given_label"],
        "predicted": texts["predicted_label"],
        **{name: [str(value or "") for value in further.get(name, empty)] for name in _FURTHER},
    }


def with_losses(run: Path, samples: Table) -> dict[str, Shaped[np.ndarray, "n"]]:
    """Return the numbers of all samples with q-values and losses, where the run has them as numbers."""
    more = read_table(run / SAMPLES, _OPTIONAL)
    kept = {name: values for name, values in more.items() if values.dtype.kind in "fiu"}
    return {**samples, **kept}
