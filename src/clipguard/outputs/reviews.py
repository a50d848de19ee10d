"""Review marks: what a person has decided on samples, who, why and when. They were made in the page."""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

import msgspec

from clipguard.errors import ClipguardError, reason_of
from clipguard.safety.limits import Limits, read_bounded

REVIEWS: Final = "reviews.json"
SCHEMA_VERSION: Final = 1


class Review(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A decision on one sample.

    Attributes:
        sha256: of its image, as in samples.parquet.
        id: its name.
        decision: keep or drop.
        by: who decided.
        reason: why.
        at: when.
    """

    sha256: str
    id: str
    decision: Literal["keep", "drop"]
    by: str
    reason: str
    at: datetime


class Reviews(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of review marks; `run` says which run they were made on."""

    schema_version: int
    run: str
    reviews: list[Review]


def read_reviews(path: Path) -> Reviews:
    """Return the marks in a file, which may be anybody's.

    Raises:
        ClipguardError: it is missing, damaged, or of another version.
    """
    try:
        marks = msgspec.json.decode(read_bounded(path, Limits().json_bytes), type=Reviews)
    except (OSError, ValueError) as error:
        raise ClipguardError(
            f"review marks {path} cannot be read ({reason_of(error)}): save them in the page again"
        ) from error
    if marks.schema_version != SCHEMA_VERSION:
        raise ClipguardError(
            f"review marks {path} have schema version {marks.schema_version}, not {SCHEMA_VERSION}: "
            "save them in the page of this version"
        )
    return marks


def decisions(reviews: Iterable[Review]) -> dict[tuple[str, str], str]:
    """Return the latest decision on each sample, by sha256 and id: equal images may have several labels."""
    latest = sorted(reviews, key=lambda review: _instant(review.at))
    return {(review.sha256, review.id): review.decision for review in latest}


def _instant(at: datetime) -> datetime:
    return at if at.tzinfo else at.replace(tzinfo=UTC)
