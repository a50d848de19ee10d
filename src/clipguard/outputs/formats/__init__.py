"""A run in the formats of other tools: each writer makes one text of the summary and the flagged samples."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal

from clipguard.outputs.formats.flagged import FlaggedSample, flagged_samples, read_flagged
from clipguard.outputs.formats.github import github
from clipguard.outputs.formats.junit import junit
from clipguard.outputs.formats.markdown import markdown
from clipguard.outputs.formats.sarif import sarif
from clipguard.outputs.samples import read_samples
from clipguard.runs.files import write_text
from clipguard.runs.summary import RunSummary, read_summary

Writer = Callable[[RunSummary, Sequence[FlaggedSample]], str]
FileFormat = Literal["sarif", "junit", "markdown"]

FILES: Final[dict[FileFormat, tuple[str, Writer]]] = {
    "sarif": ("results.sarif", sarif),
    "junit": ("junit.xml", junit),
    "markdown": ("summary.md", markdown),
}
"""Formats that are files of the run folder: name of the file, and what writes it."""


def write_format(name: FileFormat, run: Path, file: Path) -> None:
    """Write a finished run in one of the formats.

    Raises:
        ClipguardError: a run that is not finished or damaged.
    """
    read_samples(run, order="table")  # whether the table makes sense
    write_text(file, FILES[name][1](read_summary(run), read_flagged(run)))


__all__ = [
    "FILES",
    "FileFormat",
    "FlaggedSample",
    "Writer",
    "flagged_samples",
    "github",
    "junit",
    "markdown",
    "read_flagged",
    "sarif",
    "write_format",
]
