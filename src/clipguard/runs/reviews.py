"""Review marks: what a person has decided on samples, who, why and when. They were made in the page."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
from jaxtyping import Shaped

from clipguard.errors import ClipguardError, reason_of
from clipguard.safety.limits import Limits, read_bounded

REVIEWS: Final = "reviews.json"
SCHEMA_VERSION: Final = 1

Decision = Literal["keep", "drop"]


class Review(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A decision on one sample.

    Attributes:
        sha256: of its image, as in samples.parquet.
        id: its name.
        decision: keep or drop.
        by: who decided.
        reason: why.
        at: when.
        given_label: name of the class that it had then; a mark without one holds whatever the label.
    """

    sha256: str
    id: str
    decision: Decision
    by: str
    reason: str
    at: datetime
    given_label: str = ""


class ReviewSummary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Review marks that a scan has respected, in numbers of samples. Scores and verdict are without them.

    Attributes:
        file: that they were read from.
        sha256: of that file.
        keep: samples that a mark keeps.
        drop: samples that a mark drops.
        no_longer_flagged: samples among the kept ones that the scan flags.
        newly_flagged: samples among the dropped ones that the scan does not flag.
        of_no_sample: marks that are of no sample here.
    """

    file: str
    sha256: str
    keep: int
    drop: int
    no_longer_flagged: int
    newly_flagged: int
    of_no_sample: int


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
    return parsed_reviews(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """Return what a file of review marks holds, unread.

    Raises:
        ClipguardError: it is missing, no regular file, or too large.
    """
    try:
        return read_bounded(path, Limits().json_bytes)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def parsed_reviews(content: bytes, path: Path) -> Reviews:
    """Return the marks that a file holds; `path` is what messages call it.

    Raises:
        ClipguardError: it is damaged, or of another version.
    """
    try:
        marks = msgspec.json.decode(content, type=Reviews)
    except ValueError as error:
        raise _unreadable(path, error) from error
    if marks.schema_version != SCHEMA_VERSION:
        raise ClipguardError(
            f"review marks {path} have schema version {marks.schema_version}, not {SCHEMA_VERSION}: "
            "save them in the page of this version"
        )
    return marks


def reviews_file(*folders: Path | None) -> Path | None:
    """Return the review marks of the first run folder that has some; None where none has."""
    files = [folder / REVIEWS for folder in folders if folder is not None]
    return next((file for file in files if file.exists()), None)


def places_of(samples: Mapping[str, Shaped[np.ndarray, "n"]], reviews: Sequence[Review]) -> list[int]:
    """Return the place of each mark's sample, -1 for a mark of none.

    A mark belongs to the image with its hash, under the label that it had. Of several such samples it takes
    the one with its name. A sample that has been moved goes by the hash alone, if no other one has that.

    Args:
        samples: the columns `sha256`, `id` and `given_label`.
        reviews: marks, in any order.
    """
    hashes = {review.sha256 for review in reviews}
    with_hash: dict[str, list[int]] = {}
    for place, sha256 in enumerate(samples["sha256"]):
        if sha256 in hashes:
            with_hash.setdefault(sha256, []).append(place)
    places = []
    for review in reviews:
        candidates = [
            place
            for place in with_hash.get(review.sha256, ())
            if review.given_label in ("", samples["given_label"][place])
        ]
        chosen = [place for place in candidates if samples["id"][place] == review.id] or candidates
        places.append(chosen[0] if len(chosen) == 1 else -1)
    return places


def matched(
    samples: Mapping[str, Shaped[np.ndarray, "n"]], reviews: Iterable[Review]
) -> tuple[Shaped[np.ndarray, "n"], int]:
    """Return the decision on each sample, empty where there is none, and how many marks are of no sample.

    Of several marks of a sample, the latest counts; see `places_of`.
    """
    ordered = in_order_of_time(reviews)
    decisions, strangers = np.full(len(samples["id"]), "", object), set[tuple[str, str]]()
    for review, place in zip(ordered, places_of(samples, ordered), strict=True):
        if place < 0:
            strangers.add((review.sha256, review.id))
        else:
            decisions[place] = review.decision
    return decisions, len(strangers)


def in_order_of_time(reviews: Iterable[Review]) -> list[Review]:
    """Return marks, the latest last."""
    return sorted(reviews, key=lambda review: _instant(review.at))


def as_values(review: Review) -> dict[str, Any]:
    """Return a mark as JSON values, its time in UTC."""
    values: dict[str, Any] = msgspec.to_builtins(review)
    return {**values, "at": _instant(review.at).astimezone(UTC).isoformat().replace("+00:00", "Z")}


def _unreadable(path: Path, error: Exception) -> ClipguardError:
    return ClipguardError(
        f"review marks {path} cannot be read ({reason_of(error)}): save them in the page again"
    )


def _instant(at: datetime) -> datetime:
    return at if at.tzinfo else at.replace(tzinfo=UTC)
