"""detection.entropy_map: losses, ranks and partition, against slow oracles, in any order of the rows."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from clipguard.detection import entropy_map as entropy_map_module
from clipguard.detection.entropy_map import (
    EntropyMapConfig,
    class_ranks,
    classes_with_few_clean,
    entropy_map,
    first_partition,
    label_nll,
    opinion,
    rank,
)
from clipguard.errors import ClipguardError
from clipguard.types import EntropyMap, Scores, State
from reference import entropy_map as oracle

NAMES = ("cat", "dog", "frog")
CONFIGS = [EntropyMapConfig(by="class"), EntropyMapConfig(by="all")]


def scores(logits, scale=1.0):
    return Scores(logits=np.asarray(logits, dtype=np.float32), scale=scale, source="the scorer")


def two_scorers(n, seed, spread=3.0, levels=None):
    """Return two scorers and labels of n random samples; few `levels` make many ties."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, spread, (2, n, 3)).astype(np.float32)
    if levels is not None:
        logits = np.round(logits / spread * levels) * spread / levels
    return scores(logits[0], 20.0), scores(logits[1]), draw.integers(0, 3, n)


def map_of(guide, early, labels):
    """Return the entropy map of two scorers."""
    return entropy_map(label_nll(guide, labels), label_nll(early, labels))


def mapped(n, seed, levels=None):
    guide, early, labels = two_scorers(n, seed, levels=levels)
    return map_of(guide, early, labels), labels


def of_losses(guide, early):
    """Return the entropy map of given losses."""
    guide, early = np.asarray(guide, float), np.asarray(early, float)
    return EntropyMap(guide_nll=guide, early_nll=early, guide_rank=rank(guide), early_rank=rank(early))


sizes = st.integers(1, 40)
draws = st.integers(0, 2**32)
coarse = st.sampled_from([None, 1, 2])


@hypothesis_settings(max_examples=40)
@given(
    st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4), min_size=1, max_size=6),
    st.sampled_from([0.5, 1.0, 22.0, 100.0]),
    draws,
)
def test_the_loss_is_that_of_an_explicit_softmax_in_60_digits(logits, scale, seed):
    labels = np.random.default_rng(seed).integers(0, 4, len(logits))
    given_scores = scores(logits, scale)
    slow = oracle.label_nll(given_scores.logits.tolist(), scale, labels.tolist())
    # Rounding of the scaled logits, the largest 1e6, is what is left of 1e-10 relative to the loss.
    np.testing.assert_allclose(label_nll(given_scores, labels), slow, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_certain_samples_neither_overflow_nor_tie(offset):
    gaps = np.arange(1.0, 701.0)  # beyond 745 nats the loss itself is below the smallest float64
    logits = np.stack([offset + gaps, np.full_like(gaps, offset), np.full_like(gaps, offset - 5)], 1)
    right = label_nll(scores(logits), np.zeros(700, dtype=np.int64))
    wrong = label_nll(scores(logits), np.ones(700, dtype=np.int64))
    assert (np.diff(right) < 0).all()
    assert right[-1] > 0
    assert (np.diff(wrong) > 0).all()


def test_huge_scores_give_huge_finite_losses_in_the_right_order():
    logits = [[1e4, -1e4, 0.0], [1e4, -1e4 + 1, 0.0], [1e30, -1e30, 0.0]]
    loss = label_nll(scores(logits), np.array([1, 1, 1]))
    np.testing.assert_allclose(loss, [2e4, 2e4 - 1, 2e30], rtol=1e-7)


def test_a_loss_ignores_what_is_added_to_all_scores_and_is_log_k_where_all_are_equal():
    np.testing.assert_allclose(
        label_nll(scores([[7.0] * 5, [-3.0] * 5]), np.array([0, 4])), np.log(5), rtol=1e-15
    )


def test_the_scores_are_left_as_they_were():
    guide, _, labels = two_scorers(9, 0)
    before = guide.logits.copy()
    label_nll(guide, labels)
    assert np.array_equal(guide.logits, before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_are_refused_with_their_first_row(value):
    logits = np.zeros((6, 3), dtype=np.float32)
    logits[4, 2] = logits[5, 0] = value
    with pytest.raises(ClipguardError) as caught:
        label_nll(scores(logits), np.zeros(6, dtype=np.int64))
    assert str(caught.value) == (
        "the scorer gave NaN or infinite scores for 2 samples, first row 4: check its weights and inputs"
    )


@pytest.mark.parametrize("broken", [(1, 12), (7, 8)])
def test_scores_come_in_pieces_and_are_judged_together(monkeypatch, broken):
    monkeypatch.setattr(entropy_map_module, "TOGETHER", 4)
    guide, _, labels = two_scorers(13, 1)
    slow = oracle.label_nll(guide.logits.tolist(), guide.scale, labels.tolist())
    found = opinion(guide, labels)
    np.testing.assert_allclose(found.nll, slow, rtol=1e-9)
    assert np.array_equal(found.likeliest, guide.logits.argmax(1))
    guide.logits[list(broken), 1] = np.nan
    with pytest.raises(ClipguardError, match=f"for 2 samples, first row {broken[0]}:"):
        opinion(guide, labels)


@given(st.lists(st.integers(-4, 4), max_size=30))
def test_ranks_are_those_of_counting_with_ties_averaged(values):
    slow = [float(r) for r in oracle.ranks(values)]
    np.testing.assert_allclose(rank(np.array(values, dtype=float)), slow, rtol=1e-15)


@given(st.lists(st.floats(0, 9), min_size=1, max_size=30))
def test_ranks_lie_above_0_and_at_most_at_1_and_average_to_the_middle(values):
    ranks = rank(np.array(values))
    assert (ranks > 0).all()
    assert (ranks <= 1).all()
    assert ranks.mean() == pytest.approx((len(values) + 1) / 2 / len(values))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=25))
def test_class_ranks_are_ranks_among_the_samples_of_one_label(pairs):
    values, labels = (np.array(column) for column in zip(*pairs, strict=True))
    slow = [float(r) for r in oracle.class_ranks(values.tolist(), labels.tolist())]
    np.testing.assert_allclose(class_ranks(values.astype(float), labels), slow, rtol=1e-15)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.by)
@given(sizes, draws, coarse, st.data())
def test_shuffling_the_rows_shuffles_the_result_and_changes_no_bit_of_it(config, n, seed, levels, data):
    guide, early, labels = two_scorers(n, seed, levels=levels)
    order = np.array(data.draw(st.permutations(range(n))), dtype=np.int64)
    entropy = map_of(guide, early, labels)
    shuffled = map_of(scores(guide.logits[order], guide.scale), scores(early.logits[order]), labels[order])
    for name in ("guide_nll", "early_nll", "guide_rank", "early_rank"):
        assert np.array_equal(getattr(entropy, name)[order], getattr(shuffled, name)), name
    one = first_partition(entropy, labels, 3, config)
    other = first_partition(shuffled, labels[order], 3, config)
    moved = replace(one, state=one.state[order], suspicion=one.suspicion[order])
    assert other.fingerprint == moved.fingerprint
    few = classes_with_few_clean(one.clean, labels, NAMES)
    assert classes_with_few_clean(other.clean, labels[order], NAMES) == few


@given(sizes, draws, coarse, st.sampled_from([(20, 10), (30, 15), (10, 10), (5, 40)]))
def test_the_rules_are_those_of_comparing_one_sample_at_a_time(n, seed, levels, per_cent):
    s1, s2 = (Fraction(value, 100) for value in per_cent)
    entropy, labels = mapped(n, seed, levels)
    guide, early = entropy.guide_nll.tolist(), entropy.early_nll.tolist()
    by_hand = {
        "all": (oracle.ranks(guide), oracle.ranks(early)),
        "class": (
            oracle.class_ranks(guide, labels.tolist()),
            oracle.class_ranks(early, labels.tolist()),
        ),
    }
    for by, axes in by_hand.items():
        config = EntropyMapConfig(by=by, clean=float(s1), candidate=float(s2))
        partition = first_partition(entropy, labels, 3, config)
        clean, flagged = oracle.first_partition(*axes, s1, s2)
        assert partition.has(State.TRIGGER).tolist() == flagged
        assert partition.clean.tolist() == [a and not b for a, b in zip(clean, flagged, strict=True)]
        # The band between is uncertain: nobody is excluded, held out, or flagged for its label.
        assert partition.counts["uncertain"] == n - partition.clean.sum() - sum(flagged)


thresholds = st.floats(0, 1)


@given(sizes, draws, coarse, st.tuples(*[thresholds] * 4), st.sampled_from(["all", "class"]))
def test_larger_thresholds_flag_more_and_leave_less_clean(n, seed, levels, bounds, by):
    entropy, labels = mapped(n, seed, levels)
    (s1, more_s1), (s2, more_s2) = sorted(bounds[:2]), sorted(bounds[2:])
    some, strict = (
        first_partition(entropy, labels, 3, EntropyMapConfig(by=by, clean=clean, candidate=flagged))
        for clean, flagged in ((s1, s2), (more_s1, more_s2))
    )
    assert not (some.flagged & ~strict.flagged).any()
    assert not (strict.clean & ~some.clean).any()
    assert np.array_equal(some.suspicion, strict.suspicion)
    assert ((some.suspicion >= 0) & (some.suspicion <= 1)).all()


@given(st.lists(st.integers(2, 15), min_size=3, max_size=3), draws, coarse)
def test_class_by_class_every_class_of_two_or_more_samples_keeps_clean_ones(counts, seed, levels):
    labels = np.repeat(np.arange(3), counts)
    guide, early, _ = two_scorers(len(labels), seed, levels=levels)
    partition = first_partition(map_of(guide, early, labels), labels, 3, EntropyMapConfig(by="class"))
    assert (np.bincount(labels[partition.clean], minlength=3) > 0).all()


def test_a_class_that_the_guide_cannot_read_is_lost_by_the_rule_over_all_and_kept_class_by_class():
    labels = np.repeat(np.arange(3), 20)
    draw = np.random.default_rng(0)
    guide = draw.random(60) + 50 * (labels == 2)
    entropy = of_losses(guide, draw.random(60))
    over_all, by_class = (
        first_partition(entropy, labels, 3, EntropyMapConfig(by=by, clean=0.4, candidate=0.2))
        for by in ("all", "class")
    )
    assert not over_all.clean[labels == 2].any()
    assert "frog" in classes_with_few_clean(over_all.clean, labels, NAMES)
    assert by_class.clean[labels == 2].any()


def test_poison_that_both_axes_see_heads_the_list_and_is_flagged_not_clean():
    draw = np.random.default_rng(1)
    poisoned = np.arange(200) % 20 == 0
    entropy = of_losses(draw.random(200) + poisoned, draw.random(200) - poisoned)
    partition = first_partition(entropy, np.arange(200) % 3, 3, EntropyMapConfig(by="all"))
    assert partition.has(State.TRIGGER)[poisoned].all()
    assert set(np.argsort(-partition.suspicion)[:10]) == set(np.flatnonzero(poisoned))


def test_suspicion_is_the_mean_of_the_guides_rank_and_what_the_other_lacks_to_one():
    entropy = of_losses([1, 2, 3, 4], [40, 10, 30, 20])
    partition = first_partition(entropy, np.zeros(4, np.int64), 3, EntropyMapConfig())
    np.testing.assert_allclose(partition.suspicion, [0.125, 0.625, 0.5, 0.75], rtol=1e-15)


def test_a_label_without_a_name_is_a_programming_error_and_not_passed_over():
    with pytest.raises(ValueError, match="zip"):
        classes_with_few_clean(np.ones(2, bool), np.array([0, 3]), NAMES)


@pytest.mark.parametrize(
    ("fewest", "names"), [(3, NAMES), (2, ("frog",)), (1, ("frog",)), (0, ())], ids=["3", "2", "1", "0"]
)
def test_classes_short_of_clean_samples_are_named_also_those_without_any(monkeypatch, fewest, names):
    monkeypatch.setattr(entropy_map_module, "FEW_CLEAN", fewest)
    clean = np.array([True, True, True, False, True])
    labels = np.array([0, 0, 1, 1, 1])
    assert classes_with_few_clean(clean, labels, NAMES) == names


def test_an_empty_data_set_gives_an_empty_map():
    nothing = np.zeros(0, dtype=np.int64)
    entropy = map_of(scores(np.zeros((0, 3))), scores(np.zeros((0, 3))), nothing)
    assert len(entropy.guide_nll) == len(entropy.early_rank) == 0
