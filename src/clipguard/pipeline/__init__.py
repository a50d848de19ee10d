"""The defence in order: guide and suspicious model, split, detector, cure; each a cached stage."""

from clipguard.pipeline.config import Plan, Report
from clipguard.pipeline.repairing import PLANTED, cure, learnable, shared_triggers, spec_to_train, train_on
from clipguard.pipeline.scanning import Scan, reserved_rows, scan, thumbnail_size

__all__ = [
    "PLANTED",
    "Plan",
    "Report",
    "Scan",
    "cure",
    "learnable",
    "reserved_rows",
    "scan",
    "shared_triggers",
    "spec_to_train",
    "thumbnail_size",
    "train_on",
]
