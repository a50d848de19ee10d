"""compute.cross_validation: every sample is scored once, by something that was fitted without it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipguard.compute.cross_validation import fold_numbers, out_of_fold

draws = st.integers(0, 2**32)


@given(st.integers(0, 60), st.integers(1, 9), draws)
def test_folds_are_numbered_from_0_and_differ_in_size_by_at_most_one(n, folds, seed):
    numbers = fold_numbers(n, folds, np.random.default_rng(seed))
    sizes = [numbers.tolist().count(number) for number in range(folds)]
    assert sum(sizes) == len(numbers) == n
    assert max(sizes) - min(sizes) <= 1


def test_folds_are_drawn_and_a_generator_of_the_same_seed_draws_them_again():
    one, again, other = (fold_numbers(60, 5, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)
    # Classes lie one after another in many data sets: a fold must not be a stretch of rows.
    assert (np.diff(np.flatnonzero(one == 0)) > 1).any()


@given(st.integers(1, 40), st.integers(1, 9), draws)
def test_each_sample_is_scored_once_and_by_what_was_fitted_on_all_other_folds(n, folds, seed):
    fold = fold_numbers(n, folds, np.random.default_rng(seed))
    calls = []

    def score(outside, inside):
        calls.append((outside.copy(), inside.copy()))
        # Who is scored, and by how many others.
        return np.stack([np.flatnonzero(inside), np.full(inside.sum(), outside.sum())], axis=1)

    scores = out_of_fold(fold, score, np.full((n, 2), -1))
    for outside, inside in calls:
        assert np.array_equal(outside, ~inside)
    assert np.array_equal(sum(inside.astype(int) for _, inside in calls), np.ones(n))
    assert [int(fold[inside][0]) for _, inside in calls] == list(range(min(n, folds)))
    assert scores[:, 0].tolist() == list(range(n))
    assert scores[:, 1].tolist() == [sum(fold != number) for number in fold]


def test_the_start_stays_as_it_is_and_gives_the_scores_their_kind():
    start = np.full((4, 2), 7.0)
    scores = out_of_fold(np.array([0, 1, 0, 1]), lambda _, inside: np.zeros((int(inside.sum()), 2)), start)
    assert (start == 7).all()
    assert scores.dtype == start.dtype
    assert not scores.any()


def test_nothing_is_fitted_for_an_empty_set():
    scores = out_of_fold(np.zeros(0, np.int64), lambda *_: pytest.fail("nobody is to be scored"), np.zeros(0))
    assert len(scores) == 0


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.integers(2, 9), draws)
def test_no_fold_tears_a_group_apart_and_no_fold_is_larger_than_it_must_be(groups, folds, seed):
    numbers = fold_numbers(len(groups), folds, np.random.default_rng(seed), np.array(groups))
    assert all(
        len({fold for fold, one in zip(numbers, groups, strict=True) if one == g}) == 1 for g in groups
    )
    sizes, largest = np.bincount(numbers, minlength=folds), np.bincount(groups).max()
    assert sizes.max() - sizes.min() <= largest


def test_a_fold_without_a_group_is_not_asked_for():
    fold = fold_numbers(6, 5, np.random.default_rng(0), np.array([0, 0, 0, 1, 1, 1]))

    def score(outside, inside):
        assert inside.sum() == outside.sum() == 3
        return np.ones(3)

    assert out_of_fold(fold, score, np.zeros(6)).tolist() == [1] * 6
