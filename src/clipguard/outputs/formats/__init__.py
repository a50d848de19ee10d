"""A run in the formats of other tools: each writer makes one text of the summary and the flagged samples."""

from clipguard.outputs.formats.flagged import FlaggedSample, flagged_samples
from clipguard.outputs.formats.sarif import sarif

__all__ = ["FlaggedSample", "flagged_samples", "sarif"]
