"""AUROC by its meaning: all pairs of one positive and one negative."""

from fractions import Fraction


def auroc(scores, positive):
    """Return the share of pairs in which the positive scores higher, a tie counting half."""
    hits = [score for score, is_positive in zip(scores, positive, strict=True) if is_positive]
    others = [score for score, is_positive in zip(scores, positive, strict=True) if not is_positive]
    won = sum(Fraction(2 * (hit > other) + (hit == other), 2) for hit in hits for other in others)
    return float(won / (len(hits) * len(others)))
