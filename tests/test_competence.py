"""detection.competence: which classes the guide can read, against brute force and known truth."""

from math import comb

import numpy as np
import pytest

from clipguard.detection.competence import class_competence, compared_guides, lower_limit, upper_limit


def tail_above(hits, n, rate):
    """Return the probability of so many hits or more."""
    return sum(comb(n, i) * rate**i * (1 - rate) ** (n - i) for i in range(hits, n + 1))


@pytest.mark.parametrize(("hits", "n"), [(1, 2), (3, 10), (9, 10), (40, 61), (1, 60)])
def test_the_limits_are_where_the_tails_of_the_binomial_have_their_probability(hits, n):
    low, high = (limit(np.array([hits]), np.array([n]), 0.01).item() for limit in (lower_limit, upper_limit))
    assert tail_above(hits, n, low) == pytest.approx(0.01)
    assert 1 - tail_above(hits + 1, n, high) == pytest.approx(0.01)


def test_without_a_hit_or_a_miss_or_a_sample_the_limits_are_zero_and_one():
    hits, n = np.array([0, 5, 0]), np.array([5, 5, 0])
    assert lower_limit(hits, n, 0.05).tolist() == [0, pytest.approx(0.05 ** (1 / 5)), 0]
    assert upper_limit(hits, n, 0.05).tolist() == [pytest.approx(1 - 0.05 ** (1 / 5)), 1, 1]


def called(draw, labels, accuracy, k):
    """Return a guide's classes: right with a probability that each class has, else any."""
    right = draw.random(len(labels)) < np.asarray(accuracy)[labels]
    return np.where(right, labels, draw.integers(0, k, len(labels)))


def test_a_guide_reads_what_it_reads_and_an_empty_class_is_not_assessable():
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 4, 4000)
    guess = called(draw, labels, [0.9, 0.3, 0, 0.6], 4)
    # The guide calls class 2 what it calls the others.
    guess[labels == 2] = draw.choice(guess[labels != 2], np.sum(labels == 2))
    read = class_competence(labels, guess, 5)
    assert read.assessable.tolist() == [True, True, False, True, False]
    assert read.n.sum() == 4000
    assert (read.low <= read.agreement).all()
    assert (read.agreement <= read.high).all()
    assert (read.n[4], read.agreement[4], read.low[4], read.high[4]) == (0, 0, 0, 1)


def test_a_guide_that_calls_everything_a_cat_agrees_with_all_cats_and_reads_none():
    labels = np.repeat([0, 1, 2], 500)
    read = class_competence(labels, np.zeros(1500, np.int64), 3)
    assert read.agreement.tolist() == [1, 0, 0]
    assert read.elsewhere.tolist() == [1, 0, 0]
    assert not read.assessable.any()


@pytest.mark.parametrize("shares", [[0.25] * 4, [0.9, 0.05, 0.04, 0.01]], ids=["even", "long tail"])
def test_a_guide_that_knows_nothing_seldom_seems_to_read_a_class(shares):
    draw, k = np.random.default_rng(1), 4
    alarms = 0
    for _ in range(400):
        labels, guess = (draw.choice(k, 200, p=shares) for _ in range(2))
        alarms += class_competence(labels, guess, k).assessable.any()
    assert alarms <= 0.05 * 400


def test_the_intervals_hold_the_true_shares_of_all_classes_together():
    draw, k = np.random.default_rng(2), 6
    labels, accuracy = np.repeat(np.arange(k), 40), np.linspace(0, 1, k)
    truth = accuracy + (1 - accuracy) / k
    held = 0
    for _ in range(400):
        read = class_competence(labels, called(draw, labels, accuracy, k), k)
        held += ((read.low <= truth) & (truth <= read.high)).all()
    assert held >= 0.95 * 400


def test_a_few_samples_are_enough_only_where_chance_is_small():
    labels = np.repeat([0, 1], [4, 400])
    one, other = labels.copy(), labels.copy()
    other[4:300] = 0
    assert class_competence(labels, one, 2).assessable[0]
    assert not class_competence(labels, other, 2).assessable[0]


def test_of_two_guides_the_better_one_is_named_by_class():
    draw, k = np.random.default_rng(3), 3
    labels = np.repeat(np.arange(k), 300)
    first, second = (called(draw, labels, accuracy, k) for accuracy in ([0.9, 0.5, 0], [0.2, 0.5, 0]))
    compared = compared_guides(labels, first, second, 4)
    assert compared.differs.tolist() == [True, False, False, False]
    assert compared.first[0] > compared.second[0] + 0.4
    assert compared.same == np.mean(first == second)
    assert compared.p_value[3] == 1


def test_the_comparison_counts_coins_of_the_samples_that_tell_the_guides_apart():
    # Of ten samples, one guide alone is right on six, the other alone on one; on three both are.
    labels = np.zeros(10, np.int64)
    first, second = np.array([0] * 9 + [1]), np.array([0] * 3 + [1] * 6 + [0])
    compared = compared_guides(labels, first, second, 2)
    assert (compared.first[0], compared.second[0]) == (0.9, 0.4)
    assert compared.p_value[0] == pytest.approx(2 * (1 + 7) / 2**7)


def test_equally_good_guides_seldom_differ():
    draw, k = np.random.default_rng(4), 3
    labels = np.repeat(np.arange(k), 60)
    alarms = sum(
        compared_guides(labels, *(called(draw, labels, [0.5] * k, k) for _ in range(2)), k).differs.any()
        for _ in range(400)
    )
    assert alarms <= 0.05 * 400
