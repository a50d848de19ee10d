"""Annotations of GitHub Actions: workflow commands, which the runner takes from the step's output."""

from collections.abc import Sequence
from typing import Final

from clipguard.errors import one_line
from clipguard.outputs.findings import finding_rows
from clipguard.outputs.formats.flagged import FlaggedSample, file_of
from clipguard.outputs.text import VERDICTS
from clipguard.runs.summary import RunSummary

SHOWN: Final = 9
"""Findings, and files: GitHub shows ten annotations of each level in a step, and the verdict is one."""


def github(summary: RunSummary, flagged: Sequence[FlaggedSample]) -> str:
    """Return one command a line: the verdict, the findings, and warnings at the most suspicious files."""
    words, n = VERDICTS[summary.verdict.answer], summary.data.n
    level = {"good": "notice", "bad": "error", "open": "warning"}[words.tone]
    reasons = "; ".join(summary.verdict.reasons)
    counts = f"{len(flagged):,} of {n:,} images are flagged"
    lines = [_command(level, f"clipguard: {words.title}", f"{words.sentence}. {counts}. {reasons}")]
    for row in finding_rows(summary.verdict.findings)[:SHOWN]:
        text = f"{row.flagged} samples are flagged; {row.meaning}"
        lines.append(_command(level, f"Class {row.class_name}", text))
    for sample in flagged[:SHOWN]:
        text = f"labelled {sample.given_label}, the guide says {sample.predicted_label}"
        file = file_of(sample, summary) if sample.path else None
        title = "Dropped by a reviewer" if sample.reason == "reviewed" else f"Flagged for its {sample.reason}"
        lines.append(_command("warning", title, text if file else f"{sample.id}: {text}", file))
    return "".join(f"{line}\n" for line in lines)


def _command(level: str, title: str, text: str, file: str | None = None) -> str:
    place = f"file={_property(file.removeprefix('./'))}," if file else ""
    return f"::{level} {place}title={_property(title)}::{_data(text)}"


def _data(text: str) -> str:
    """Return text on one line, in which nothing ends or begins a command."""
    return one_line(text).replace("%", "%25")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
