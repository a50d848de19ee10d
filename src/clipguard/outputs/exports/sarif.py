"""Findings as SARIF 2.1.0, which code hosts and CI show: one result a flagged sample, the worst first."""

from itertools import islice
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from clipguard.errors import one_line
from clipguard.outputs.exports.rows import column_names, flagged_rows
from clipguard.runs import write_json
from clipguard.runs.summary import RunSummary, read_summary

SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
MOST_RESULTS: Final = 25_000
"""GitHub takes no more in a run."""

ROOT: Final = "SOURCE"
"""What paths are relative to: the data."""

RULES: Final = (
    (
        "trigger",
        "FlaggedForTrigger",
        "The image shares a pattern with others that alone carries the label.",
    ),
    ("label", "FlaggedForLabel", "The label was probably changed; the image itself is unchanged."),
)


def write_sarif(run: Path, file: Path) -> None:
    """Write the flagged samples as SARIF.

    Raises:
        ClipguardError: a run that is not finished or damaged.
    """
    write_json(file, sarif(run))


def sarif(run: Path) -> dict[str, Any]:
    """Return the flagged samples of a run as the values of a SARIF log."""
    column_names(run)
    summary = read_summary(run)
    results = [_result(row) for row in islice(flagged_rows(run), MOST_RESULTS)]
    flagged = summary.partition["flagged_for_a_trigger"] + summary.partition["flagged_for_its_label"]
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "clipguard", "version": summary.version, "rules": _rules()}},
                "invocations": [
                    {"executionSuccessful": True, "toolExecutionNotifications": _notes(summary, flagged)}
                ],
                "originalUriBaseIds": {ROOT: {"description": {"text": "the data that was scanned"}}},
                "columnKind": "unicodeCodePoints",
                "results": results,
                "properties": {"answer": summary.verdict.answer, "flagged": flagged, "n": summary.data.n},
            }
        ],
    }


def _rules() -> list[dict[str, Any]]:
    return [
        {
            "id": name,
            "name": title,
            "shortDescription": {"text": text},
            "help": {"text": "Look at the sample in the report, then train without it (clipguard apply)."},
            "defaultConfiguration": {"level": "warning"},
        }
        for name, title, text in RULES
    ]


def _notes(summary: RunSummary, flagged: int) -> list[dict[str, Any]]:
    """Return the verdict's reasons, and how many results are left out."""
    notes = [{"level": "note", "message": {"text": _plain(text)}} for text in summary.verdict.reasons]
    if flagged > MOST_RESULTS:
        text = f"{flagged - MOST_RESULTS} more flagged samples are in samples.parquet"
        notes.append({"level": "warning", "message": {"text": text}})
    return notes


def _result(row: dict[str, Any]) -> dict[str, Any]:
    number = [rule for rule, _, _ in RULES].index(row["reason"])
    given, predicted = _plain(row["given_label"]), _plain(row["predicted_label"])
    by_trigger = f" (trigger {row['trigger']})" if row["trigger"] else ""
    words = f"labelled {given}, flagged for its {row['reason']}{by_trigger}; the guide says {predicted}"
    location: dict[str, Any] = {"logicalLocations": [{"name": one_line(row["id"]), "kind": "member"}]}
    if row["path"]:
        artifact = {"uri": quote(row["path"]), "uriBaseId": ROOT}
        # A place in the file is asked for by those who show results; an image has one line.
        location["physicalLocation"] = {"artifactLocation": artifact, "region": {"startLine": 1}}
    return {
        "ruleId": row["reason"],
        "ruleIndex": number,
        "level": "warning",
        "message": {"text": f"{_plain(row['path'] or row['id'])}: {words}"},
        "locations": [location],
        "partialFingerprints": {"sha256/v1": row["sha256"]},
        "rank": 100 * row["poison_score"],
        "properties": {name: row[name] for name in ("row", "poison_score", "q_value", "given_label")},
    }


def _plain(text: str) -> str:
    """Return text in one line that SARIF's viewers take for no link and no placeholder."""
    for mark, instead in (("\\", "\\\\"), ("[", "\\["), ("]", "\\]"), ("{", "{{"), ("}", "}}")):
        text = text.replace(mark, instead)
    return one_line(text)
