"""The defence in order: guide and suspicious model, split, detector, cure; each a cached stage."""

from clipguard.pipeline.config import DefenseConfig, Report
from clipguard.pipeline.repairing import (
    FEATURES_FILE,
    cure,
    inverted_triggers,
    learnable,
    spec_to_train,
    train_on,
)
from clipguard.pipeline.scanning import Scan, held_out_rows, scan, thumbnail_size

__all__ = [
    "FEATURES_FILE",
    "DefenseConfig",
    "Report",
    "Scan",
    "cure",
    "held_out_rows",
    "inverted_triggers",
    "learnable",
    "scan",
    "spec_to_train",
    "thumbnail_size",
    "train_on",
]
