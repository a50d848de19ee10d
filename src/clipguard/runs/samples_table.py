"""samples.parquet: its columns, what each of them means, and the two orders of its rows."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Int64

SAMPLES: Final = "samples.parquet"


class Column(NamedTuple):
    """A column of samples.parquet; `description` is one line, with the unit or the range in brackets."""

    name: str
    description: str


COLUMNS: Final = (
    Column("row", "number of the sample in the source as listed (from 0)"),
    Column("id", "name of the sample (text, unique)"),
    Column(
        "path",
        "file of the image: relative to the folder, or inside its shard as shard.tar/name; empty for arrays "
        "and for tables that name no file (text)",
    ),
    Column(
        "sha256",
        "SHA-256 of the encoded image as it was read; of shape and raw pixels for arrays (64 hex digits)",
    ),
    Column("label", "index of the given class (from 0)"),
    Column("given_label", "name of the given class (text)"),
    Column("predicted_label", "name of the class that the guide prefers (text)"),
    Column("status", "what becomes of the sample (flagged, set aside or trusted)"),
    Column(
        "reason",
        "why it is not trusted (trigger, label, uncertain or excluded; reviewed where a person has decided "
        "otherwise than the scan; empty if the scan trusts it)",
    ),
    Column("poison_score", "how suspicious the sample is (0 to 1, higher is more suspicious)"),
    Column(
        "q_value",
        "estimated share of innocent samples among those of the class that are at least as suspicious "
        "(0 to 1)",
    ),
    Column("rank", "place by poison_score among all samples (from 1, the most suspicious)"),
    Column("trigger", "number of the reconstructed trigger that it is flagged for (from 1; 0 for none)"),
    Column("guide_nll", "loss of the given label under the guide (nats)"),
    Column("early_nll", "loss of the given label under the early-training model (nats)"),
    Column(
        "guide_rank", "rank of guide_nll among all samples, ties averaged (0 to 1, 1 for the highest loss)"
    ),
    Column(
        "early_rank", "rank of early_nll among all samples, ties averaged (0 to 1, 1 for the highest loss)"
    ),
    Column("trigger_score", "probability of a trigger by the trigger detector (0 to 1)"),
)
"""The columns in their order; those of further signals follow."""

NEW: Final = "new"
"""Column of a scan with a baseline."""

DESCRIPTIONS: Final = {
    **dict(COLUMNS),
    NEW: "whether the baseline run lacks it; only where a baseline is given (true, false)",
}


def in_table_order(columns: Mapping[str, Any]) -> tuple[dict[str, Any], Int64[np.ndarray, "n"]]:
    """Return the columns in the order of `COLUMNS`, and the order of their rows.

    Rows are sorted in the table and not here: the flagged ones come first, then by rank.
    """
    order = np.lexsort((columns["rank"], np.asarray(columns["status"]) != "flagged"))
    known = [name for name in DESCRIPTIONS if name in columns]
    names = [*known, *(name for name in columns if name not in DESCRIPTIONS)]
    return {name: columns[name] for name in names}, order.astype(np.int64)


def source_order(rows: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
    """Return the places of the table's rows in the order of the source, given its column `row`."""
    return np.argsort(rows, kind="stable").astype(np.int64)
