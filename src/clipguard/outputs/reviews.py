"""What review marks did in a scan, in words."""

from clipguard.runs.reviews import ReviewSummary


def review_words(reviews: ReviewSummary | None) -> list[str]:
    """Return what review marks did in a scan, in sentences; none without marks."""
    if reviews is None:
        return []
    strangers = reviews.of_no_sample
    sentences = [
        f"Review marks of {reviews.file}: {_samples(reviews.keep)} kept, {reviews.drop:,} dropped.",
        f"Of the kept ones, the scan flags {reviews.no_longer_flagged:,}; of the dropped ones, it does not "
        f"flag {reviews.newly_flagged:,}. Scores and verdict are those of the scan, without marks.",
    ]
    if strangers:
        marks = "1 mark is" if strangers == 1 else f"{strangers:,} marks are"
        sentences.append(f"{marks} of no sample here, and without effect.")
    return sentences


def _samples(count: int) -> str:
    return "1 sample" if count == 1 else f"{count:,} samples"
