"""Review marks in a scan: what a person keeps is not flagged again, what a person drops is flagged.

Marks have the last word on what becomes of a sample, and no word before. They move the partition once all
signals have: scores, ranks, reconstructed triggers, tests, canaries and the verdict are those of a scan
without marks. Whoever marks samples one by one would otherwise change what the test of their class says.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from clipguard.errors import ClipguardError
from clipguard.pipeline.samples import sample_hashes
from clipguard.pipeline.scan import Scan
from clipguard.runs import RunFolder, replacing
from clipguard.runs.reviews import (
    REVIEWS,
    Review,
    ReviewSummary,
    matched,
    parsed_reviews,
    read_bytes,
    reviews_file,
)
from clipguard.types import NO_TRIGGER, State


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenReviews:
    """Review marks as they were given.

    Attributes:
        file: that they come from.
        content: of the file.
        marks: in it.
        replaces: content of the run folder's own file, which these marks replace; None without one.
    """

    file: Path
    content: bytes
    marks: tuple[Review, ...]
    replaces: bytes | None


def given_reviews(run: Path, baseline: Path | None, file: Path | None) -> GivenReviews | None:
    """Return the marks that a scan respects: those of `file`, of the run folder or of the baseline's.

    The first of these that is there counts alone.

    Raises:
        ClipguardError: they cannot be read, or the run folder has marks that `file` lacks.
    """
    place = file or reviews_file(run, baseline)
    if place is None:
        return None
    content = read_bytes(place)
    marks = tuple(parsed_reviews(content, place).reviews)
    own = reviews_file(run)
    before = None if own is None else read_bytes(own)
    lost = 0 if own is None or before is None else len(set(parsed_reviews(before, own).reviews) - set(marks))
    if lost:
        raise ClipguardError(
            f"{lost:,} review marks of {own} are not in {place}, which would replace it: put them there, or "
            "move the former away"
        )
    return GivenReviews(file=place, content=content, marks=marks, replaces=before)


def with_reviews(scan: Scan) -> Scan:
    """Return the scan in which review marks have the last word on what becomes of a sample."""
    given = scan.context.reviews
    if given is None:
        return scan
    names = np.array(scan.data.class_names, object)
    columns = {
        "sha256": np.array([*sample_hashes(scan.context.finished["embeddings"].path)], object),
        "id": np.array(scan.data.ids, object),
        "given_label": names[scan.data.labels],
    }
    decisions, strangers = matched(columns, given.marks)
    partition = scan.partition
    kept = (decisions == "keep") & ~partition.clean
    dropped = (decisions == "drop") & ~partition.flagged
    moved = partition.moved(kept, State.KEPT).moved(dropped, State.DROPPED)
    moved = replace(moved, trigger=np.where(kept, NO_TRIGGER, moved.trigger))
    summary = ReviewSummary(
        file=str(given.file),
        sha256=hashlib.sha256(given.content).hexdigest(),
        keep=int((decisions == "keep").sum()),
        drop=int((decisions == "drop").sum()),
        no_longer_flagged=int((kept & partition.flagged).sum()),
        newly_flagged=int(dropped.sum()),
        of_no_sample=strangers,
    )
    return replace(scan, partition=moved, before_review=partition, reviews=summary)


def record_reviews(run: RunFolder, given: GivenReviews | None) -> None:
    """Write the marks that were respected into the run folder, where page, `apply` and the next scan look.

    Marks that came there while the scan went on stay, and are not sealed.
    """
    own = reviews_file(run.path)
    if given is None:
        if own is None:
            run.retract(REVIEWS)
    elif own is None or read_bytes(own) in (given.content, given.replaces):
        with run.publishing(REVIEWS) as path, replacing(path) as part:
            part.write_bytes(given.content)
