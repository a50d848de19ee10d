"""SARIF 2.1.0, the format of code scanning: one result for each finding and for each flagged sample."""

import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from clipguard.errors import one_line
from clipguard.outputs.findings import finding_rows
from clipguard.outputs.formats.flagged import FlaggedSample, file_of
from clipguard.outputs.text import VERDICTS
from clipguard.runs.summary import Finding, RunSummary

SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
VERSION: Final = "2.1.0"
MOST_RESULTS: Final = 25_000
"""GitHub takes no more in a run; the findings come first."""


class Rule(NamedTuple):
    """A kind of result: its id, a title, and what it means and asks for."""

    id: str
    title: str
    meaning: str


CLASS: Final = Rule(
    "poisoned-class",
    "Class with poisoned samples",
    "The flagged samples of this class have one cause. Train nothing on them before somebody has looked.",
)
TRIGGER: Final = Rule(
    "trigger",
    "Sample with a trigger",
    "The image shares a pattern with others, and the pattern alone carries the label. Leave the image out.",
)
LABEL: Final = Rule(
    "label",
    "Sample with a wrong label",
    "Like others of this label, the image shows another class. Correct it, or leave it out.",
)
REVIEWED: Final = Rule(
    "reviewed",
    "Sample that a reviewer drops",
    "The scan does not flag the image. A person has looked and dropped it: reviews.json says who and why.",
)
RULES: Final = (CLASS, TRIGGER, LABEL, REVIEWED)
_PLACES: Final = {rule.id: place for place, rule in enumerate(RULES)}


def sarif(summary: RunSummary, flagged: Sequence[FlaggedSample]) -> str:
    """Return a SARIF log: findings first, then the flagged samples, the most suspicious first.

    A sample is an error where the verdict is suspicious, else a warning. Its location is the image's file, or
    the file that holds it. Warnings of the run become notifications; the verdict stands in the properties.
    """
    level = "error" if summary.verdict.answer == "suspicious" else "warning"
    findings = [_class_result(finding, summary) for finding in summary.verdict.findings[:MOST_RESULTS]]
    listed = flagged[: MOST_RESULTS - len(findings)]
    run = {
        "tool": {"driver": _driver(summary)},
        "invocations": [_invocation(summary, len(flagged) - len(listed))],
        "results": [*findings, *(_sample_result(sample, summary, level) for sample in listed)],
        "columnKind": "unicodeCodePoints",
        "properties": {
            "answer": summary.verdict.answer,
            "reasons": summary.verdict.reasons,
            "complete": summary.verdict.complete,
            "images": summary.data.n,
            "guide": summary.guide.name,
            "seed": summary.seed,
        },
    }
    log = {"$schema": SCHEMA, "version": VERSION, "runs": [run]}
    return json.dumps(log, indent=1, allow_nan=False) + "\n"


def _driver(summary: RunSummary) -> dict[str, Any]:
    return {
        "name": "clipguard",
        "version": summary.version,
        "semanticVersion": summary.version,
        "rules": [
            {
                "id": rule.id,
                "shortDescription": {"text": rule.title},
                "fullDescription": {"text": rule.meaning},
                "help": {"text": rule.meaning},
                "properties": {"tags": ["security", "data-poisoning"]},
            }
            for rule in RULES
        ],
    }


def _invocation(summary: RunSummary, left_out: int) -> dict[str, Any]:
    notes = [*summary.verdict.reasons, *summary.warnings]
    if left_out:
        notes.append(f"{left_out:,} more flagged samples are in samples.parquet")
    return {
        "executionSuccessful": True,
        "exitCode": VERDICTS[summary.verdict.answer].exit_code,
        "toolExecutionNotifications": [{"level": "warning", "message": _message(note)} for note in notes],
    }


def _class_result(finding: Finding, summary: RunSummary) -> dict[str, Any]:
    (row,) = finding_rows([finding])
    text = f"Class {finding.class_name}: {finding.flagged:,} samples are flagged; {row.meaning}."
    values = {"label": finding.label, "at_least": finding.at_least, "p_value": finding.p_value}
    return {
        "ruleId": CLASS.id,
        "ruleIndex": _PLACES[CLASS.id],
        "level": "warning" if finding.kind == "shortcut" else "error",
        "message": _message(text),
        "locations": [_location(summary.data.location)],
        "partialFingerprints": {"class/v1": f"{finding.kind}:{one_line(finding.class_name)}"},
        "properties": {"kind": finding.kind, **{name: v for name, v in values.items() if v is not None}},
    }


def _sample_result(sample: FlaggedSample, summary: RunSummary, level: str) -> dict[str, Any]:
    rule = next((rule for rule in (LABEL, REVIEWED) if rule.id == sample.reason), TRIGGER)
    text = f"{rule.title}: labelled {sample.given_label}, and the guide says {sample.predicted_label}."
    result: dict[str, Any] = {
        "ruleId": rule.id,
        "ruleIndex": _PLACES[rule.id],
        "level": level,
        "rank": round(100 * min(1.0, max(0.0, sample.poison_score)), 4),
        "message": _message(text),
        "locations": [_location(file_of(sample, summary), sample.id)],
        "partialFingerprints": {
            "imageAndLabel/v1": f"{sample.sha256 or one_line(sample.id)}:{one_line(sample.given_label)}"
        },
        "properties": {
            "rank": sample.rank,
            "poison_score": sample.poison_score,
            "given_label": sample.given_label,
            "predicted_label": sample.predicted_label,
            "sha256": sample.sha256,
            "trigger": sample.trigger,
        },
    }
    if sample.new is not None:
        result["baselineState"] = "new" if sample.new else "unchanged"
    return result


def _location(file: str, name: str | None = None) -> dict[str, Any]:
    location: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": _uri(file)}}}
    if name is not None:
        location["logicalLocations"] = [{"fullyQualifiedName": one_line(name), "kind": "resource"}]
    return location


def _uri(file: str) -> str:
    """Return a path as a URI: absolute with `file://`, relative otherwise; odd letters are escaped."""
    path = quote(file.removeprefix("./"), safe="/", errors="surrogateescape")
    return f"file://{path}" if path.startswith("/") else path


def _message(text: str) -> dict[str, str]:
    """Return a message that means itself: SARIF reads brackets as links, and braces as place holders."""
    plain = one_line(text).replace("\\", "\\\\")
    for mark, written in (("[", "\\["), ("]", "\\]"), ("{", "{{"), ("}", "}}")):
        plain = plain.replace(mark, written)
    return {"text": plain}
