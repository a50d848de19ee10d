"""The clean slice as a detector takes it, with the seconds that finding it took."""

from clipguard.defenses.clean_slice import Origin, clean_slice
from clipguard.defenses.clipguard import scanned, stage_seconds
from clipguard.defenses.protocol import Case
from clipguard.pipeline.config import DefenseConfig
from clipguard.types import ImageSet


def clean_and_seconds(case: Case, origin: Origin, config: DefenseConfig) -> tuple[ImageSet, float]:
    """Return clean samples, and the seconds of the scan that found them; 0 where they were given.

    Raises:
        ClipguardError: there are too few.
    """
    clean = clean_slice(case, origin, config)
    if origin == "given":
        return clean, 0.0
    return clean, sum(stage_seconds(scanned(case, config)).values())
