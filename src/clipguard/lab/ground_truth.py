"""Which samples are poisoned: the secret, written and read; no defence may import this."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Bool, Int64

from clipguard.errors import ClipguardError, reason_of
from clipguard.runs import replacing

if TYPE_CHECKING:
    import pyarrow as pa


_TYPES: Final = {"poisoned": "bool", "cover": "bool", "original_labels": "int64", "part": "int64"}
"""Columns of a truth file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoisonTruth:
    """What an attack did to a data set.

    Attributes:
        poisoned: samples whose image or label the attack changed for its backdoor (or as noise).
        cover: cover samples: another image, and their own label.
        original_labels: the labels before the attack.
        attack: the attack's name.
        target: the class that the backdoor leads to; None where there is no single one.
        part: where several attacks act at once, the place in `attack` of the one that changed the sample, -1
            for none; None for a single attack.
    """

    poisoned: Bool[np.ndarray, "n"]
    cover: Bool[np.ndarray, "n"]
    original_labels: Int64[np.ndarray, "n"]
    attack: str
    target: int | None
    part: Int64[np.ndarray, "n"] | None = None


def write_truth(truth: PoisonTruth, path: Path) -> None:
    """Write `path` (Parquet): one row a sample, the attack and its target in the schema's metadata."""
    import pyarrow as pa
    from pyarrow import parquet

    columns = {name: values for name in _TYPES if (values := getattr(truth, name)) is not None}
    target = "" if truth.target is None else str(truth.target)
    table = pa.table(columns).replace_schema_metadata({"attack": truth.attack, "target": target})
    with replacing(path) as part:
        parquet.write_table(table, part)


def read_truth(path: Path) -> PoisonTruth:
    """Return what `write_truth` wrote.

    Raises:
        ClipguardError: the file is missing or is no truth file.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            table = file.read()
        _check(table)
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        return PoisonTruth(
            poisoned=np.array(table["poisoned"].to_numpy(), dtype=bool),
            cover=np.array(table["cover"].to_numpy(), dtype=bool),
            original_labels=np.array(table["original_labels"].to_numpy(), dtype=np.int64),
            attack=metadata["attack"],
            target=int(metadata["target"]) if metadata["target"] else None,
            part=np.array(table["part"].to_numpy()) if "part" in table.column_names else None,
        )
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise ClipguardError(
            f"truth file {path} cannot be read ({reason_of(error)}): write the poisoned set anew"
        ) from error


def _check(table: "pa.Table") -> None:
    """Refuse columns of another type and nulls: both would become True without a word."""
    for name, column in zip(table.column_names, table.columns, strict=True):
        if str(column.type) != _TYPES.get(name) or column.null_count:
            raise ValueError(
                f"column {name} holds {column.type} and {column.null_count} nulls, not {_TYPES.get(name)}"
            )
