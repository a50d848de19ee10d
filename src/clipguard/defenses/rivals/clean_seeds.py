"""A few clean samples of each class, from which a defence begins."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from clipguard.defenses.clean_slice import Origin
from clipguard.defenses.clipguard import scanned, stage_seconds
from clipguard.defenses.protocol import Case
from clipguard.errors import ClipguardError
from clipguard.pipeline.config import DefenseConfig
from clipguard.seeds import Seed
from clipguard.types import Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class SeededSet:
    """The samples of a case, with given clean ones behind them if there are any.

    Attributes:
        images: of all samples.
        labels: of all samples.
        untrusted: how many of them are the case's own; they come first.
        seeds: rows of those known to be clean.
        seconds: by stage, what it took to find them.
    """

    images: Rows
    labels: Int64[np.ndarray, "n"]
    untrusted: int
    seeds: Int64[np.ndarray, "s"]
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedRows:
    """Rows of one kind and then of another, read when asked for."""

    first: Rows
    second: Rows

    @property
    def shape(self) -> Any:
        """Number of rows, then the shape of each."""
        return (len(self), *self.first.shape[1:])

    def __len__(self) -> int:
        """Return n."""
        return len(self.first) + len(self.second)

    def __getitem__(self, rows: Any, /) -> Any:
        """Return the rows of a slice or of an array of row numbers, as an array."""
        index = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        behind = index >= len(self.first)
        ahead = self.first[index[~behind]]
        result = np.empty((len(index), *ahead.shape[1:]), dtype=ahead.dtype)
        result[~behind], result[behind] = ahead, self.second[index[behind] - len(self.first)]
        return result


def seeded_set(case: Case, origin: Origin, per_class: int, config: DefenseConfig) -> SeededSet:
    """Return the samples of a case and so many clean ones a class; fewer where a class has fewer.

    Args:
        case: whose samples.
        origin: `split` takes seeds among what a scan trusts; `given` among `Case.clean`.
        per_class: seeds of each class.
        config: clipguard's settings, for its scan.

    Raises:
        ClipguardError: there is no clean sample at all, or given ones have another size.
    """
    data, seed = case.data, Seed(case.seed).child("clean seeds")
    if origin == "split":
        defender = scanned(case, config)
        rows = np.flatnonzero(defender.partition_.clean)
        return SeededSet(
            images=data.images,
            labels=data.labels,
            untrusted=len(data),
            seeds=_of_each_class(rows, data.labels, per_class, seed),
            seconds=stage_seconds(defender),
        )
    if case.clean is None:
        raise ClipguardError("no clean samples were given: name clean_rows, or take origin split")
    if case.clean.images.shape[1:] != data.images.shape[1:]:
        raise ClipguardError("given clean samples have another size than the data: give some of the same")
    rows = _of_each_class(np.arange(len(case.clean)), case.clean.labels, per_class, seed)
    taken = case.clean.take(rows)
    return SeededSet(
        images=JoinedRows(first=data.images, second=taken.images),
        labels=np.concatenate([data.labels, taken.labels]),
        untrusted=len(data),
        seeds=np.arange(len(data), len(data) + len(taken)),
        seconds={},
    )


def _of_each_class(
    rows: Int64[np.ndarray, "m"], labels: Int64[np.ndarray, "n"], per_class: int, seed: Seed
) -> Int64[np.ndarray, "s"]:
    order = seed.generator().permutation(rows)
    chosen = [order[labels[order] == label][:per_class] for label in np.unique(labels[rows])]
    if not chosen:
        raise ClipguardError(
            "no clean sample is there to begin from: give some, by clean_rows and origin given"
        )
    return np.sort(np.concatenate(chosen))
