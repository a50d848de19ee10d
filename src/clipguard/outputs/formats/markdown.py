"""Markdown, for the summary of a CI job or a comment on a change: verdict, findings, the first files."""

import string
from collections.abc import Iterable, Sequence
from typing import Final

from clipguard.errors import one_line
from clipguard.outputs.findings import finding_rows, power_words
from clipguard.outputs.formats.flagged import FlaggedSample, file_of
from clipguard.outputs.reviews import review_words
from clipguard.outputs.text import VERDICTS, percent
from clipguard.runs.summary import RunSummary

SHOWN: Final = 20
"""Files in the table; the table of samples holds all."""

_MARKS: Final = {ord(mark): f"&#{ord(mark)};" for mark in string.punctuation if mark not in "/-_.,"} | {
    # Mentions are looked for after entities are read: a comment parts the sign from the name.
    ord("@"): "&#64;<!-- -->"
}
"""Punctuation as entities, which begin no markup."""


def markdown(summary: RunSummary, flagged: Sequence[FlaggedSample]) -> str:
    """Return the summary of a run; names from the data appear as code, and never as markup."""
    words, data = VERDICTS[summary.verdict.answer], summary.data
    share = percent(len(flagged) / data.n) if data.n else "–"
    lines = [
        f"## clipguard: {words.title}",
        "",
        f"{words.sentence[0].upper()}{words.sentence[1:]}.",
        "",
        f"**{len(flagged):,} of {data.n:,} images ({share}) are flagged**, in {len(data.classes):,} classes "
        f"of {_code(data.location)}.",
        "",
        *(f"* {_plain(reason)}" for reason in summary.verdict.reasons),
        *(f"* {_plain(sentence)}" for sentence in review_words(summary.reviews)),
        "",
        words.advice,
        "",
    ]
    rows = [
        (_code(row.class_name), row.kind, row.flagged, row.at_least, _plain(row.meaning))
        for row in finding_rows(summary.verdict.findings)
    ]
    lines += _table(("class", "kind", "flagged", "poisoned, at least", "what it means"), rows)
    lines += _table(
        ("most suspicious", "label", "guide says", "reason", "score"),
        [
            (
                _code(file_of(one, summary) if one.path else one.id),
                _code(one.given_label),
                _code(one.predicted_label),
                _plain(one.reason),
                f"{one.poison_score:.3f}",
            )
            for one in flagged[:SHOWN]
        ],
    )
    if len(flagged) > SHOWN:
        lines += [f"… and {len(flagged) - SHOWN:,} more: samples.parquet lists all.", ""]
    lines += ["<details><summary>What could have been missed</summary>", ""]
    lines += [f"* {_plain(text)}" for text in (*power_words(summary.verdict.power), *summary.verdict.limits)]
    lines += ["", "</details>", "", f"clipguard {_plain(summary.version)}, guide {_code(summary.guide.name)}"]
    return "\n".join(lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Iterable[str]]) -> list[str]:
    if not rows:
        return []
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


def _plain(text: str) -> str:
    return one_line(text).translate(_MARKS).replace("www.", "www&#46;")


def _code(text: str) -> str:
    return f"<code>{_plain(text)}</code>"
