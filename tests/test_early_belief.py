"""detection.early_belief: improbable labels that are believed early, against enumeration and known truth."""

import warnings
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binom, fisher_exact

from clipguard.detection.early_belief import (
    BELIEVED_OF_ALL,
    BELIEVED_OF_CLASS,
    CORNERS,
    FALSE_SHARE,
    IMPROBABLE,
    LARGEST_STRENGTH,
    UNEQUAL,
    Crossed,
    class_p_values,
    corners,
    early_belief,
    strengths,
    tables,
)

ALPHA = 0.05


def table_of(*rows):
    """Return the table of classes, each given as both, improbable, believed, size."""
    return Crossed(*(np.array(column) for column in zip(*rows, strict=True)))


def tail_by_enumeration(both, improbable, believed, size, gamma):
    """Return P(at least `both`) of Fisher's noncentral hypergeometric distribution, in exact fractions."""
    counts = range(max(0, improbable + believed - size), min(improbable, believed) + 1)
    weights = {x: comb(improbable, x) * comb(size - improbable, believed - x) * gamma**x for x in counts}
    return sum(weight for x, weight in weights.items() if x >= both) / sum(weights.values())


@st.composite
def classes(draw):
    size = draw(st.integers(0, 60))
    improbable, believed = draw(st.integers(0, size)), draw(st.integers(0, size))
    both = draw(st.integers(max(0, improbable + believed - size), min(improbable, believed)))
    return both, improbable, believed, size


@given(st.lists(classes(), min_size=1, max_size=5))
@settings(max_examples=60)
def test_p_values_are_those_of_fishers_test_times_the_classes_that_have_samples(rows):
    p_values, several = class_p_values(table_of(*rows)), sum(size > 0 for *_, size in rows)
    for p_value, (both, improbable, believed, size) in zip(p_values, rows, strict=True):
        square = [[both, improbable - both], [believed - both, size - improbable - believed + both]]
        expected = fisher_exact(square, alternative="greater").pvalue * several if size else 1.0
        assert p_value == pytest.approx(min(1.0, expected), rel=1e-9)


def test_a_p_value_is_the_rate_at_which_shuffled_labels_look_so():
    draw = np.random.default_rng(0)
    improbable, believed = np.arange(80) < 20, np.arange(80) < 12
    shuffled = [(draw.permutation(improbable) & believed).sum() for _ in range(20_000)]
    rate = (np.array(shuffled) >= 6).mean()
    assert class_p_values(table_of((6, 20, 12, 80)))[0] == pytest.approx(rate, abs=4 * (rate / 20_000) ** 0.5)


def test_nobody_is_suspected_of_nothing():
    nothing, no_labels = np.zeros(0), np.zeros(0, dtype=np.int64)
    result = early_belief(nothing, nothing, no_labels, 3, ALPHA)
    assert (result.p_value == 1).all()
    assert not result.suspected.any()
    assert not result.at_least.any()
    assert not result.strength.any()


def place(value, values):
    """Return the place of a value among others, ascending; those that tie share the mean of theirs."""
    return (values < value).sum() + ((values == value).sum() + 1) / 2


def test_improbable_are_the_highest_tenth_of_all_and_believed_the_lowest_of_each_class_or_of_all():
    draw = np.random.default_rng(1)
    labels, n = draw.choice([0, 1, 3], 600, p=[0.6, 0.3, 0.1]), 600
    guide, early = draw.integers(0, 90, (2, n)).astype(np.float64)
    shares = [(share, True) for share in BELIEVED_OF_CLASS] + [(share, False) for share in BELIEVED_OF_ALL]
    for table, (share, in_class) in zip(tables(guide, early, labels, 4), shares, strict=True):
        expected = np.zeros((4, 4), dtype=int)
        for row in range(n):
            others = early[labels == labels[row]] if in_class else early
            improbable = place(guide[row], guide) > (1 - IMPROBABLE) * n
            believed = place(early[row], others) < share * len(others)
            expected[:, labels[row]] += [improbable and believed, improbable, believed, 1]
        assert np.array_equal(np.stack(table), expected)
        assert expected[0].sum() > 0


def independent(seed, n=1500, k=4):
    """Return losses and labels; every class has its own scale of both losses, independent within it."""
    draw = np.random.default_rng(seed)
    labels = draw.choice(k, n, p=np.arange(1, k + 1) / (k * (k + 1) / 2))
    scale = draw.uniform(0.5, 2.0, (2, k))
    return *(scale[:, labels] * draw.exponential(size=(2, n))), labels


def test_independent_losses_are_rejected_no_more_often_than_alpha():
    smallest = [early_belief(*independent(seed), 4, ALPHA).p_value.min() for seed in range(400)]
    for alpha in (0.01, 0.05, 0.2):
        assert (np.array(smallest) <= alpha).sum() <= binom.ppf(0.999, 400, alpha)
    assert (np.array(smallest) <= 0.2).sum() > 10


def test_losses_that_rise_together_are_never_rejected():
    for seed in range(50):
        guide, early, labels = independent(seed)
        assert (early_belief(guide, early + guide, labels, 4, ALPHA).p_value > 0.2).all()


@given(classes(), st.sampled_from([0.05, 0.003]))
@settings(max_examples=60)
def test_a_strength_is_where_the_noncentral_tail_reaches_alpha(row, alpha):
    strength = strengths(table_of(row), alpha)[0]
    if not row[-1] or tail_by_enumeration(*row, 1) > Fraction(alpha):
        assert strength == 0
        return
    assert tail_by_enumeration(*row, Fraction(strength) * Fraction(99, 100)) < alpha
    if strength < LARGEST_STRENGTH:
        assert tail_by_enumeration(*row, Fraction(strength) * Fraction(101, 100)) > alpha


def test_strengths_split_alpha_among_classes_that_have_samples():
    one, other = (14, 30, 20, 200), (3, 20, 30, 300)
    alone = strengths(table_of(one), ALPHA / 2)[0]
    assert alone > 1
    assert strengths(table_of(one, (0, 0, 0, 0), other), ALPHA).tolist() == [alone, 0, 0]


def test_no_strength_exceeds_the_largest():
    assert strengths(table_of((300, 300, 300, 3000)), ALPHA)[0] == LARGEST_STRENGTH


@given(classes())
@settings(max_examples=60)
def test_a_class_at_the_very_level_has_a_strength_of_1(row):
    p_value = float(class_p_values(table_of(row))[0])
    assume(p_value < 1)
    assert strengths(table_of(row), p_value)[0] == pytest.approx(1.0, rel=5e-3)


def poisoned(seed, count=150, n=5000, k=10, chance=0.01, correct=1.0):
    """Return losses, labels and which are poisoned: class 0 has poison that is improbable and believed early.

    The share `chance` of the labels of every class is so although they are correct; `correct` times as much
    in class 0.
    """
    draw = np.random.default_rng(seed)
    labels, carries = draw.integers(0, k, n), np.zeros(n, dtype=bool)
    guide, early = draw.random(n), draw.random(n)
    by_chance = draw.random(n) < chance * np.where(labels == 0, correct, 1.0)
    carries[draw.choice(n, count, replace=False)] = True
    labels[carries] = 0
    both = carries | by_chance
    guide[both], early[both] = 1 - draw.beta(1, 30, both.sum()), draw.beta(1, 30, both.sum())
    return guide, early, labels, carries


@pytest.mark.parametrize("correct", [1.0, UNEQUAL])
def test_lower_bounds_hold_and_are_of_use(correct):
    failing, bounds = 0, []
    for seed in range(150):
        guide, early, labels, carries = poisoned(seed, chance=0.03, correct=correct)
        result = early_belief(guide, early, labels, 10, ALPHA)
        failing += (result.at_least > np.bincount(labels[carries], minlength=10)).any()
        bounds.append(result.at_least[0])
    assert failing <= binom.ppf(0.999, 150, ALPHA)
    assert np.median(bounds) >= 75


def test_false_shares_are_those_of_the_correct_labels_in_a_corner():
    estimated, true = np.zeros(len(CORNERS)), np.zeros(len(CORNERS))
    for seed in range(40):
        guide, early, labels, carries = poisoned(seed, count=250)
        result = early_belief(guide, early, labels, 10, ALPHA)
        assert result.suspected[0]
        shares = np.unique(result.false_share[result.suspected[labels]])
        assert shares[-1] == 1
        assert len(shares) > 3
        for place, share in enumerate(CORNERS):
            n = len(labels)
            inside = (np.argsort(np.argsort(guide)) >= (1 - share) * n) & (
                np.argsort(np.argsort(early)) < share * n - 1
            )
            inside &= labels == 0
            estimated[place] += result.false_share[inside].max() / 40
            true[place] += (inside & ~carries).sum() / inside.sum() / 40
    # Poison counts as a part of its class: the estimate is on the safe side.
    assert (true <= 1.1 * estimated).all()
    assert (estimated <= 2 * true + 0.01).all()
    assert true[-1] > 2 * true[0]


def test_flags_are_poison_of_suspected_classes_but_for_the_share_that_is_allowed():
    hits, flags, carried = 0, 0, 0
    for seed in range(20):
        guide, early, labels, carries = poisoned(seed)
        result = early_belief(guide, early, labels, 10, ALPHA)
        assert not result.flagged[~result.suspected[labels]].any()
        assert (result.false_share[~result.suspected[labels]] == 1).all()
        assert (result.false_share[result.flagged] < 1).all()
        hits, flags = hits + (result.flagged & carries).sum(), flags + result.flagged.sum()
        carried += carries.sum()
    assert hits / flags >= 1 - FALSE_SHARE
    assert hits / carried > 0.5


def test_where_every_class_is_suspected_nothing_tells_how_many_labels_are_correct():
    guide, early, labels, _ = poisoned(0)
    result = corners(guide, early, labels, np.ones(10, dtype=bool), ALPHA)
    assert not result.flagged.any()
    assert not result.at_least.any()
    assert (result.false_share == 1).all()


@given(st.integers(0, 500))
@settings(max_examples=15)
def test_the_order_of_the_rows_and_the_units_of_the_losses_do_not_matter(seed):
    guide, early, labels, _ = poisoned(seed, n=3000, count=80)
    guide, early = np.round(guide, 2), np.round(early, 2)
    order = np.random.default_rng(seed).permutation(3000)
    result = early_belief(guide, early, labels, 12, ALPHA)
    moved = early_belief(np.exp(guide[order]), 3 * early[order] - 7, labels[order], 12, ALPHA)
    assert result.suspected[0]
    for of_classes in ("p_value", "strength", "suspected", "at_least"):
        assert np.array_equal(getattr(result, of_classes), getattr(moved, of_classes))
    for of_samples in ("flagged", "false_share"):
        assert np.array_equal(getattr(result, of_samples)[order], getattr(moved, of_samples))


@pytest.mark.parametrize("labels", [np.arange(300) % 2, np.zeros(300, dtype=np.int64), np.arange(300) // 9])
def test_constant_losses_and_tiny_classes_are_no_finding(labels):
    values, k = np.arange(300.0), 40
    with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
        warnings.simplefilter("error")
        for guide, early in ((np.ones(300), values), (values, np.ones(300)), (values, values)):
            result = early_belief(guide, early, labels, k, ALPHA)
            assert not result.suspected.any()
            assert not result.flagged.any()
            assert (result.p_value == 1).all()


def test_one_class_that_holds_everything_may_be_suspected_but_has_no_bound():
    values = np.arange(300.0)
    result = early_belief(values, -values, np.zeros(300, dtype=np.int64), 2, ALPHA)
    assert result.suspected.tolist() == [True, False]
    assert result.strength[0] > 100
    assert not result.at_least.any()
    assert not result.flagged.any()
