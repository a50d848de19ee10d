"""Which samples are poisoned: the secret, with its own reading and writing; no defence may import this."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from clipguard.errors import ClipguardError


@dataclass(frozen=True, slots=True, kw_only=True)
class PoisonTruth:
    """What an attack did to a data set.

    Attributes:
        poisoned: samples whose image or label the attack changed in order to plant its backdoor (or noise).
        cover: samples that carry a decoy and their own label.
        original_labels: the labels before the attack.
        attack: the attack's name.
        target: the class that the backdoor leads to; None where there is no single one.
    """

    poisoned: Bool[np.ndarray, "n"]
    cover: Bool[np.ndarray, "n"]
    original_labels: Int64[np.ndarray, "n"]
    attack: str
    target: int | None


def write_truth(truth: PoisonTruth, path: Path) -> None:
    """Write `path` (Parquet): one row a sample, the attack and its target in the schema's metadata."""
    import pyarrow as pa
    from pyarrow import parquet

    columns = {name: getattr(truth, name) for name in ("poisoned", "cover", "original_labels")}
    target = "" if truth.target is None else str(truth.target)
    table = pa.table(columns).replace_schema_metadata({"attack": truth.attack, "target": target})
    temporary = path.with_name(path.name + ".part")
    parquet.write_table(table, temporary)
    temporary.rename(path)


def read_truth(path: Path) -> PoisonTruth:
    """Return what `write_truth` wrote.

    Raises:
        ClipguardError: the file is missing or is no truth file.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
        notes = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        return PoisonTruth(
            poisoned=table["poisoned"].to_numpy().astype(bool),
            cover=table["cover"].to_numpy().astype(bool),
            original_labels=table["original_labels"].to_numpy().astype(np.int64),
            attack=notes["attack"],
            target=int(notes["target"]) if notes["target"] else None,
        )
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise ClipguardError(f"truth file {path} cannot be read: {error}") from error
