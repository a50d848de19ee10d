"""`--format`: which forms of the result there are beside the page, and where each of them goes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, get_args

from clipguard.errors import ClipguardError
from clipguard.outputs.formats import FILES, FileFormat, FlaggedSample
from clipguard.runs import RunFolder, write_text

if TYPE_CHECKING:
    from clipguard.runs.summary import RunSummary

PRINTED: Final = ("json", "github")
"""Formats that are printed: the runner of GitHub Actions reads annotations from the output alone."""

FORMATS: Final = (*PRINTED, *get_args(FileFormat))


def formats_from(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the formats that the values of `--format` name, each once.

    Raises:
        ClipguardError: one is unknown.
    """
    names = [name.strip() for text in texts for name in text.split(",")]
    for name in names:
        if name not in FORMATS:
            raise ClipguardError(f"--format {name!r} is unknown: give some of {', '.join(sorted(FORMATS))}")
    return tuple(dict.fromkeys(names))


def files_of(formats: Sequence[str]) -> dict[str, str]:
    """Return the files that the formats are written to, by format."""
    return {name: file for name, (file, _) in FILES.items() if name in formats}


def write_formats(
    run: RunFolder, formats: Sequence[str], summary: "RunSummary", flagged: Sequence[FlaggedSample]
) -> None:
    """Publish the files of the formats in the run folder; those of an earlier command go, they may be old."""
    for name, (file, writer) in FILES.items():
        if name not in formats:
            run.retract(file)
            continue
        with run.publishing(file) as path:
            write_text(path, writer(summary, flagged))
