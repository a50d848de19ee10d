"""detection.sensitivity: strengths, lower bounds and q-values of classes, against enumeration and draws."""

import itertools
import warnings
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from clipguard.detection import sensitivity
from clipguard.detection.sensitivity import (
    LARGEST_STRENGTH,
    LEAST_SHARE,
    NATURAL,
    Counts,
    Sides,
    at_least,
    class_counts,
    class_strengths,
    content_shares,
    false_shares,
    strength,
    tail,
)

ALPHA = 0.05


def counts_of(candidates, trusted, share):
    return Counts(np.array(candidates), np.array(trusted), np.array(share, dtype=np.float64))


def chances_of(counts, gamma):
    """Return the largest chance of being a candidate of every single sample."""
    chances = []
    for candidates, trusted, share in zip(*counts, strict=True):
        chances += [gamma * share / (1 - share + gamma * share)] * int(candidates + trusted)
    return chances


def tail_by_recursion(counts, gamma):
    """Return the tail sample by sample: after each, the number of candidates has grown by one or not."""
    distribution = [1.0]
    for chance in chances_of(counts, gamma):
        grown = [0.0, *(chance * p for p in distribution)]
        distribution = [g + (1 - chance) * p for g, p in zip(grown, [*distribution, 0.0], strict=True)]
    return sum(distribution[int(counts.candidates.sum()) :])


def rejected_at_most(draws, alpha):
    """Return how many of the draws may reject at `alpha` before the level is refuted (one in a thousand)."""
    return binom.ppf(0.999, draws, alpha)


@st.composite
def tables(draw):
    contents = draw(st.integers(1, 2))
    sizes = st.lists(st.integers(0, 3), min_size=contents, max_size=contents)
    shares = st.lists(st.floats(0.01, 0.9), min_size=contents, max_size=contents)
    return counts_of(draw(sizes), draw(sizes), draw(shares))


@given(tables(), st.floats(0.1, 20.0))
@settings(max_examples=40)
def test_the_tail_is_the_sum_over_all_outcomes(counts, gamma):
    chances, total = chances_of(counts, gamma), 0.0
    for outcome in itertools.product((0, 1), repeat=len(chances)):
        if sum(outcome) >= counts.candidates.sum():
            total += np.prod([p if hit else 1 - p for p, hit in zip(chances, outcome, strict=True)])
    assert tail(counts, gamma) == pytest.approx(total, abs=1e-12)
    assert tail(counts, gamma) == pytest.approx(tail_by_recursion(counts, gamma), abs=1e-12)


def test_the_tail_is_the_rate_at_which_so_many_candidates_are_drawn():
    counts = counts_of([9, 13, 2], [11, 7, 32], [0.2, 0.4, 0.05])
    draw = np.random.default_rng(0)
    drawn = (draw.random((100_000, 74)) < chances_of(counts, 1.5)).sum(1)
    rate = (drawn >= 24).mean()
    assert 0.01 < rate < 0.99
    assert tail(counts, 1.5) == pytest.approx(rate, abs=4 * np.sqrt(rate / 100_000))


@pytest.mark.parametrize(
    ("candidates", "trusted", "share"),
    [
        ([30, 5], [2, 20], [0.2, 0.1]),
        ([12], [0], [0.5]),
        ([3, 0, 40], [60, 4, 80], [0.05, 0.9, 0.3]),
        ([1], [0], [0.01]),
    ],
)
@pytest.mark.parametrize("alpha", [0.05, 0.002])
def test_a_strength_is_where_the_tail_reaches_alpha(candidates, trusted, share, alpha):
    counts = counts_of(candidates, trusted, share)
    gamma = strength(counts, alpha)
    assert tail_by_recursion(counts, 0.99 * gamma) < alpha < tail_by_recursion(counts, 1.01 * gamma)


def test_a_class_without_candidates_has_no_strength_and_none_exceeds_the_largest():
    assert strength(counts_of([0, 0], [3, 9], [0.2, 0.4]), ALPHA) == 0.0
    assert strength(counts_of([100_000], [0], [0.01]), ALPHA) == LARGEST_STRENGTH


def sides_of(seed, *, n=1200, shares=(0.1, 0.2, 0.3, 0.4), bias=1.0, above=0.1, triggered=0, decoys=None):
    """Return a draw, and which samples carry a trigger.

    Each content makes candidates at its own rate, whatever the pixels are, but for samples of class 0 above
    the threshold: their odds are `bias` times as high. Class 0 has `decoys` others above the threshold.
    """
    draw, k = np.random.default_rng(seed), len(shares)
    content = draw.integers(0, k, n)
    labels = np.where(draw.random(n) < 0.8, content, draw.integers(0, k, n))
    positive = draw.random(n) < above
    if decoys is not None:
        positive &= labels != 0
        positive[np.flatnonzero(labels == 0)[:decoys]] = True
    carries = np.zeros(n, dtype=bool)
    carries[draw.choice(np.flatnonzero(content != 0), triggered, replace=False)] = True
    odds = np.array(shares) / (1 - np.array(shares))
    odds = np.where(positive & (labels == 0), bias, 1.0) * odds[content]
    labels[carries] = 0
    candidates = carries | (draw.random(n) < odds / (1 + odds))
    given = Sides(
        candidates=candidates,
        trusted=~candidates & (draw.random(n) < 0.9),
        positive=positive | carries,
        content=content,
        labels=labels,
        num_classes=k,
    )
    return given, carries


@pytest.mark.parametrize("bias", [1.0, 3.0])
def test_without_a_trigger_strengths_exceed_the_hidden_bias_no_more_often_than_alpha(bias):
    # Of samples that are neither, a tenth of the others, the entropy map says nothing: shares grow a little.
    draws = [class_strengths(sides_of(seed, bias=bias)[0], 0.2) for seed in range(150)]
    exceeding = sum((strengths > bias).any() for strengths in draws)
    assert exceeding <= rejected_at_most(150, 0.2)
    assert any((strengths > bias / 2).any() for strengths in draws)


def test_a_class_with_a_trigger_is_stronger_than_any_bias_of_the_others():
    for seed in range(10):
        given, _ = sides_of(seed, triggered=60, above=0.02)
        strengths = class_strengths(given, ALPHA)
        assert strengths[0] > 5 * max(1.0, *strengths[1:])


def test_a_content_has_the_share_of_its_candidates_drawn_a_little_to_that_of_all():
    given, _ = sides_of(0, n=20_000)
    share = content_shares(given)
    for content in range(4):
        inside = given.content == content
        candidates, trusted = (given.candidates & inside).sum(), (given.trusted & inside).sum()
        assert share[content] == pytest.approx(candidates / (candidates + trusted), abs=1e-3)
    alone = replace(given, content=np.zeros(20_000, dtype=np.int64), num_classes=5)
    assert content_shares(alone)[1:] == pytest.approx(content_shares(alone)[0], abs=1e-3)


def test_shares_are_never_extreme_even_if_all_or_none_are_candidates():
    every, none = np.ones(30, dtype=bool), np.zeros(30, dtype=bool)
    labels = np.zeros(30, dtype=np.int64)
    for candidates, trusted in ((every, none), (none, every), (none, none)):
        given = Sides(
            candidates=candidates,
            trusted=trusted,
            positive=every,
            content=labels,
            labels=labels,
            num_classes=3,
        )
        shares = content_shares(given)
        assert ((shares >= LEAST_SHARE) & (shares < 1)).all()
        with warnings.catch_warnings(), np.errstate(all="raise"):
            warnings.simplefilter("error")
            assert (class_strengths(given, ALPHA) <= 1).all()
            assert (at_least(given, ALPHA) == 0).all()
            assert np.isfinite(false_shares(given, np.ones(30))).all()


def test_a_class_is_counted_by_content_only_above_the_threshold():
    given, _ = sides_of(3, triggered=20)
    counted = class_counts(given)
    for label in range(4):
        for content in range(4):
            rows = (given.labels == label) & (given.content == content) & given.positive
            assert counted[label].candidates[content] == (rows & given.candidates).sum()
            assert counted[label].trusted[content] == (rows & given.trusted).sum()


def test_a_class_without_candidates_above_the_threshold_has_no_counts_and_no_figures():
    given, _ = sides_of(4, triggered=20)
    silent = replace(given, positive=given.positive & (given.labels != 2), num_classes=6)
    assert set(class_counts(silent)) == {0, 1, 3}
    for figures in (class_strengths(silent, ALPHA), at_least(silent, ALPHA)):
        assert not figures[[2, 4, 5]].any()
    shares = false_shares(silent, np.random.default_rng(0).random(len(silent.labels)))
    assert (shares[silent.labels == 2] == 1).all()


def test_an_empty_set_has_no_figures():
    nothing, nobody = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)
    given = Sides(
        candidates=nobody, trusted=nobody, positive=nobody, content=nothing, labels=nothing, num_classes=3
    )
    assert not class_strengths(given, ALPHA).any()
    assert not at_least(given, ALPHA).any()
    assert false_shares(given, np.zeros(0)).shape == (0,)


@given(st.integers(0, 1000), st.integers(0, 40))
@settings(max_examples=15)
def test_the_order_of_the_rows_does_not_matter(seed, triggered):
    given, _ = sides_of(seed, n=400, triggered=triggered)
    draw = np.random.default_rng(seed)
    score, order = draw.integers(0, 9, 400) / 9, draw.permutation(400)
    values = {field.name: getattr(given, field.name) for field in fields(given)}
    moved = Sides(**{k: v if k == "num_classes" else v[order] for k, v in values.items()})
    assert np.array_equal(class_strengths(given, ALPHA), class_strengths(moved, ALPHA))
    assert np.array_equal(at_least(given, ALPHA), at_least(moved, ALPHA))
    assert np.array_equal(false_shares(given, score)[order], false_shares(moved, score[order]))


def test_a_bound_of_one_content_fails_no_more_often_than_alpha_by_enumeration(monkeypatch):
    # However many samples lie above the threshold without a trigger, each a candidate at the largest odds.
    share, triggered = 0.2, 25
    monkeypatch.setattr(sensitivity, "content_shares", lambda sides: np.array([share]))
    odds = NATURAL * share / (1 - share)
    worst = 0.0
    for innocent in range(40):
        failing = 0.0
        for candidates in range(innocent + 1):
            number = triggered + innocent
            labels, every = np.zeros(number, dtype=np.int64), np.ones(number, dtype=bool)
            is_candidate = np.arange(number) < triggered + candidates
            given = Sides(
                candidates=is_candidate,
                trusted=~is_candidate,
                positive=every,
                content=labels,
                labels=labels,
                num_classes=1,
            )
            if at_least(given, ALPHA)[0] > triggered:
                failing += binom.pmf(candidates, innocent, odds / (1 + odds))
        worst = max(worst, failing)
    assert ALPHA / 5 < worst <= ALPHA


@pytest.mark.parametrize("shares", [(0.2,) * 6, (0.5, *(0.1,) * 5), (0.1, *(0.3,) * 5)])
@pytest.mark.parametrize("bias", [1.0, NATURAL])
def test_a_bound_holds_where_contents_differ_and_is_of_use(shares, bias):
    failing, bounds = 0, []
    for seed in range(150):
        given, carries = sides_of(
            seed, n=3000, shares=shares, bias=bias, triggered=150, above=0.01, decoys=40
        )
        bound = at_least(given, ALPHA)
        failing += (bound > np.bincount(given.labels[carries], minlength=len(shares))).any()
        bounds.append(bound[0])
    assert failing <= rejected_at_most(150, ALPHA)
    assert np.median(bounds) >= 75


def scored(seed, triggered=150):
    """Return a draw in which a trigger raises the score, and the scores."""
    given, carries = sides_of(seed, n=4000, shares=(0.2,) * 4, triggered=triggered, above=0.05)
    draw = np.random.default_rng(seed)
    return given, carries, np.where(carries, draw.beta(6, 2, 4000), draw.beta(2, 4, 4000))


def test_false_shares_never_fall_with_the_score_and_are_equal_at_equal_scores():
    given, _, score = scored(0)
    score = np.round(score, 2)
    shares = false_shares(given, score)
    for label in range(4):
        inside = given.labels == label
        ascending = np.unique(score[inside])
        by_score = [np.unique(shares[inside & (score == value)]) for value in ascending]
        assert all(len(values) == 1 for values in by_score)
        assert (np.diff(np.concatenate(by_score)) <= 0).all()


def test_a_false_share_is_the_smallest_over_all_thresholds_up_to_the_score():
    given, _, score = scored(1)
    score, everything = np.round(score, 2), replace(given, positive=np.ones(4000, dtype=bool))
    shares = false_shares(everything, score)
    # All contents have the same share, and nearly the same one in the draw.
    odds = NATURAL * np.median(content_shares(given)) / (1 - np.median(content_shares(given)))
    for row in range(0, 4000, 40):
        inside = given.labels == given.labels[row]
        smallest = 1.0
        for threshold in np.unique(score[inside & (score <= score[row])]):
            reached = inside & (score >= threshold)
            others = ~given.trusted & ~given.candidates
            innocent = ((reached & given.trusted).sum() + 1) * (1 + odds + others.sum() / given.trusted.sum())
            smallest = min(smallest, innocent / reached.sum())
        assert shares[row] == pytest.approx(smallest, rel=0.2)


def test_false_shares_are_those_of_the_samples_without_a_trigger(monkeypatch):
    estimated, true = [], []
    for natural in (1.0, NATURAL):
        monkeypatch.setattr(sensitivity, "NATURAL", natural)
        for seed in range(20):
            given, carries, score = scored(seed)
            shares = false_shares(given, score)
            reached = (given.labels == 0) & (shares <= 0.2)
            estimated.append(shares[reached].max())
            true.append((reached & ~carries).sum() / reached.sum())
    # Without an allowance the estimate is the truth, and with it a safe one.
    assert np.mean(true[:20]) == pytest.approx(np.mean(estimated[:20]), rel=0.25)
    assert np.mean(true[20:]) <= np.mean(estimated[20:])
    assert np.mean(true[20:]) > 0.02
