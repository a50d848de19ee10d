"""The review marks of a run as the page shows them: who decided what, why and when."""

import hashlib
from pathlib import Path
from typing import Any, Final

from clipguard.outputs.report.embedded import as_json
from clipguard.runs import read_table
from clipguard.runs.reviews import (
    ReviewSummary,
    as_values,
    in_order_of_time,
    parsed_reviews,
    places_of,
    read_bytes,
    reviews_file,
)
from clipguard.runs.samples_table import SAMPLES

LISTED: Final = 100
"""How many marks are listed, the latest ones."""

EMBEDDED: Final = 300_000
"""Bytes of marks that the page's script is given, the latest ones."""


def shown_marks(run: Path, reviews: ReviewSummary | None) -> dict[str, Any]:
    """Return the marks in the run folder as the page shows them, the latest first.

    Keys: `sha256` (of the file, empty without one), `total`, `entries` (JSON values within `EMBEDDED` bytes,
    each with the `row` of its sample in the table, -1 for none), `listed` (the first of them), `respected`
    (whether the scan has respected this very file).

    Args:
        run: the run folder.
        reviews: what the scan says of the marks that it has respected.

    Raises:
        ClipguardError: the marks are damaged, or the table of samples is.
    """
    file = reviews_file(run)
    if file is None:
        return {"sha256": "", "total": 0, "entries": [], "listed": [], "respected": True}
    content = read_bytes(file)
    marks = in_order_of_time(parsed_reviews(content, file).reviews)[::-1]
    rows = places_of(read_table(run / SAMPLES, ("sha256", "id", "given_label")), marks)
    entries, left = list[dict[str, Any]](), EMBEDDED
    for mark, row in zip(marks, rows, strict=True):
        entry = {**as_values(mark), "row": row}
        left -= len(as_json(entry))
        if left < 0:
            break
        entries.append(entry)
    sha256 = hashlib.sha256(content).hexdigest()
    return {
        "sha256": sha256,
        "total": len(marks),
        "entries": entries,
        "listed": entries[:LISTED],
        "respected": reviews is not None and reviews.sha256 == sha256,
    }
