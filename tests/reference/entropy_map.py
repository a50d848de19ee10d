"""Losses, ranks and first partition as one would explain them on paper."""

from decimal import Decimal, localcontext
from fractions import Fraction


def label_nll(logits, scale, labels):
    """Return -log softmax(scale * logits)[label] of each row, in 60 digits, then rounded once."""
    losses = []
    with localcontext() as context:
        context.prec = 60
        context.Emin, context.Emax = -(10**9), 10**9
        for row, label in zip(logits, labels, strict=True):
            scaled = [Decimal(float(value)) * Decimal(float(scale)) for value in row]
            odds = sum(((v - scaled[label]).exp() for j, v in enumerate(scaled) if j != label), Decimal(0))
            losses.append(float(_log_of_one_plus(odds)))
    return losses


def _log_of_one_plus(odds):
    # 60 digits of 1 + 1e-70 are 1: below that, the series' first term is right to all of them.
    return odds if odds < Decimal("1e-35") else (1 + odds).ln()


def ranks(values):
    """Return, for each value, the share of values at or below it, ties counted by their middle."""
    n = len(values)
    out = []
    for value in values:
        below = sum(other < value for other in values)
        equal = sum(other == value for other in values)
        out.append(Fraction(2 * below + equal + 1, 2 * n))
    return out


def class_ranks(values, labels):
    """Return the ranks of each value among those of the same label."""
    out = []
    for value, label in zip(values, labels, strict=True):
        rivals = [v for v, other in zip(values, labels, strict=True) if other == label]
        out.append(ranks(rivals)[rivals.index(value)])
    return out


def first_partition(guide_ranks, early_ranks, s1, s2):
    """Return the lists `clean` and `flagged` of CGD's rule; s1 and s2 are fractions."""
    clean, flagged = [], []
    for guide, early in zip(guide_ranks, early_ranks, strict=True):
        flagged.append(guide > 1 - s2 or early < s2)
        clean.append(guide <= 1 - s1 and early >= s1)
    return clean, flagged
