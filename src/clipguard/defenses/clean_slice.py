"""Clean samples for defences that need some: from clipguard's own clean part, or given ones."""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from clipguard.defenses.clipguard import scanned, stage_seconds
from clipguard.defenses.protocol import Case
from clipguard.errors import ClipguardError
from clipguard.pipeline.config import DefenseConfig
from clipguard.seeds import Seed
from clipguard.types import ImageSet

Origin = Literal["split", "given"]
"""`split`: of the samples that a scan trusts, which the paper calls Split-Clean. `given`: of `Case.clean`."""

SHARE: Final = 0.05
"""Clean samples as a share of the data: what clean-data defences are published with."""

HELD_OUT: Final = 0.2
"""Share of the slice that a defence chooses its thresholds by, and does not learn from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanSlice:
    """Clean samples, and what finding them took: seconds of the scan by stage, none where they were given."""

    samples: ImageSet
    scan: dict[str, float]


def clean_slice(case: Case, origin: Origin, config: DefenseConfig) -> CleanSlice:
    """Return so many clean samples as `SHARE` of the data, drawn alike for every defence of a case.

    Raises:
        ClipguardError: none are given, or fewer than that are there.
    """
    count, scan = round(SHARE * len(case.data)), dict[str, float]()
    if origin == "given":
        if case.clean is None:
            raise ClipguardError("no clean samples were given: name clean_rows, or take origin split")
        pool, rows = case.clean, np.arange(len(case.clean))
    else:
        defender = scanned(case, config)
        pool, rows, scan = case.data, np.flatnonzero(defender.partition_.clean), stage_seconds(defender)
    if len(rows) < count:
        raise ClipguardError(f"{len(rows)} clean samples are there, and {count} are needed")
    draw = Seed(case.seed).child("clean slice").generator()
    return CleanSlice(samples=pool.take(np.sort(draw.choice(rows, count, replace=False))), scan=scan)


def learned_and_held_out(clean: ImageSet, seed: Seed) -> tuple[ImageSet, ImageSet]:
    """Return two parts of a slice: what a defence learns from, and what it chooses its thresholds by."""
    order = seed.generator().permutation(len(clean))
    count = round(HELD_OUT * len(clean))
    return clean.take(np.sort(order[count:])), clean.take(np.sort(order[:count]))
