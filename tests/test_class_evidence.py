"""detection.class_evidence: which classes hold a trigger, by scores whose truth is known."""

from dataclasses import fields, replace

import numpy as np
import pytest
from scipy.stats import binom

from clipguard.detection import class_evidence as class_evidence_module
from clipguard.detection.class_evidence import (
    ALPHA,
    FEWEST_SAMPLES,
    LEAST_STRENGTH,
    class_evidence,
    sides_of,
    with_evidence,
)
from clipguard.detection.entropy_map import EntropyMapConfig
from clipguard.detection.label_exchange import LabelExchange
from clipguard.detection.one_way_labels import OneWayLabels
from clipguard.detection.sample_scores import SampleScores
from clipguard.detection.trigger_detector import HANDFUL, TriggerDetectorConfig
from clipguard.types import State, partition_of
from tiny_labels import no_one_way

K, TARGET = 5, 1
MAP, DETECTOR = EntropyMapConfig(), TriggerDetectorConfig()


def exchange_of(p_value, excess=1000):
    return LabelExchange(
        p_value=np.asarray(p_value, dtype=np.float64),
        tail=np.ones(K),
        source=np.full(K, -1),
        one_source=np.zeros(K, dtype=bool),
        strength=np.zeros(K),
        excess=np.full(K, float(excess)),
        wrong_labels=np.zeros(K),
    )


def scores_of(seed=0, n=3000, *, triggered=0, wrong=True, by_detector=True, early=True, positive=0.01):
    """Return scores of samples that all differ by chance alone, but for a trigger in `TARGET`; and its rows.

    Args:
        seed: of the draw.
        n: samples.
        triggered: how many carry it.
        wrong: whether their labels are wrong, so that the guide doubts them.
        by_detector: whether the trigger detector recognizes them.
        early: whether their labels are believed early.
        positive: share of the others above the detector's threshold.
    """
    draw = np.random.default_rng(seed)
    content = draw.integers(0, K, n)
    labels, rows = content.copy(), draw.choice(n, triggered, replace=False)
    content[rows] = draw.choice([0, 2, 3, 4], triggered) if wrong else TARGET
    labels[rows] = TARGET
    guide, first, late, score = draw.random((4, n))
    score = np.where(draw.random(n) < positive, 0.9 + score / 10, score / 3)
    if wrong:
        guide[rows] = 1 + draw.random(triggered)
    if early:
        first[rows], late[rows] = draw.random((2, triggered)) / 50
    if by_detector:
        score[rows] = 0.95 + draw.random(triggered) / 20
    scores = SampleScores(
        labels=labels,
        num_classes=K,
        guide_nll=guide,
        guide_class=content,
        early_nll=first,
        late_nll=late,
        probe_loss=draw.random(n),
        probe_class=content,
        first_round=score,
        trigger_score=score,
        exchange=exchange_of(np.ones(K)),
        one_way=no_one_way(K),
    )
    return scores, rows


def judged(scores):
    return class_evidence(scores, MAP, DETECTOR)


def the_others():
    return np.arange(K) != TARGET


@pytest.mark.parametrize(
    "trigger",
    [{}, {"wrong": False}, {"by_detector": False}, {"early": False}],
    ids=["dirty label", "clean label", "missed by the detector", "learned late"],
)
def test_either_axis_alone_reveals_a_trigger(trigger):
    alarms = 0
    for seed in range(10):
        scores, rows = scores_of(seed, triggered=90, **trigger)
        evidence, carries = judged(scores), np.isin(np.arange(len(scores)), rows)
        assert evidence.triggered[TARGET]
        if evidence.triggered[the_others()].any():
            alarms += 1
            continue
        assert np.array_equal(evidence.suspected, evidence.triggered)
        assert (scores.labels[evidence.flagged] == TARGET).all()
        assert (evidence.flagged & carries).sum() > 0.5 * len(rows)
        assert (evidence.flagged & ~carries).sum() < 0.2 * len(rows)
        assert 0.3 * len(rows) <= evidence.at_least[TARGET] <= len(rows)
        assert not evidence.at_least[the_others()].any()
        assert (evidence.q_value[scores.labels != TARGET] == 1).all()
        assert evidence.q_value[carries].mean() < 0.3 < evidence.q_value[~carries].mean()
    assert alarms <= binom.ppf(0.999, 10, ALPHA)


def test_each_axis_has_the_triggers_that_only_it_can_reveal():
    by_pixels = judged(scores_of(triggered=90, wrong=False)[0])
    assert by_pixels.pixel_strength[TARGET] >= LEAST_STRENGTH
    assert not by_pixels.early.suspected.any()
    by_labels = judged(scores_of(triggered=90, by_detector=False)[0])
    assert by_labels.early.suspected[TARGET]
    assert by_labels.pixel_strength[TARGET] < LEAST_STRENGTH


def test_without_a_trigger_nothing_is_suspected_more_often_than_alpha_and_nothing_flagged():
    draws = [judged(scores_of(seed, n=1500, positive=0.05)[0]) for seed in range(100)]
    alarms = [evidence for evidence in draws if evidence.suspected.any()]
    assert len(alarms) <= binom.ppf(0.999, 100, ALPHA)
    quiet = [evidence for evidence in draws if not evidence.suspected.any()]
    assert not any(evidence.flagged.any() or evidence.at_least.any() for evidence in quiet)
    assert all((evidence.q_value == 1).all() for evidence in quiet)


@pytest.mark.parametrize("trigger", [{"wrong": False}, {"by_detector": False}])
def test_too_few_samples_are_never_suspected(monkeypatch, trigger):
    # A set in which a trigger of this kind stands out for certain.
    monkeypatch.setattr(class_evidence_module, "FEWEST_SAMPLES", 1000)
    for n, expected in ((999, False), (1000, True)):
        scores, _ = scores_of(2, n=n, triggered=60, **trigger)
        low = replace(scores, exchange=exchange_of(np.where(the_others(), 1.0, 0.001)))
        assert judged(scores).triggered.any() == expected
        assert judged(low).suspected.any() == expected
        assert judged(scores).flagged.any() == expected
        assert judged(scores).at_least.any() == expected


def test_a_content_that_explains_the_candidates_by_either_view_removes_the_suspicion():
    scores, rows = scores_of(triggered=90, wrong=False)
    content = scores.guide_class.copy()
    # All samples with the trigger look like class 0, as no other sample does.
    content[content == 0], content[rows] = 2, 0
    for explained in (replace(scores, guide_class=content), replace(scores, probe_class=content)):
        evidence = judged(explained)
        assert evidence.pixel_strength[TARGET] < LEAST_STRENGTH
        assert not evidence.suspected.any()
        assert not evidence.flagged.any()


def test_the_less_favourable_view_of_the_content_counts():
    draw = np.random.default_rng(5)
    scores, _ = scores_of(triggered=90, wrong=False, positive=0.05)
    # The other view takes many samples of the class, triggered or not, for another content.
    crowded = scores.guide_class.copy()
    crowded[(scores.guide_class == TARGET) & (draw.random(len(scores)) < 0.4)] = 0
    views = (scores.guide_class, crowded)
    both, one, other = (
        judged(replace(scores, guide_class=views[guide], probe_class=views[probe]))
        for guide, probe in ((0, 1), (0, 0), (1, 1))
    )
    assert one.triggered[TARGET]
    assert other.triggered[TARGET]
    assert one.at_least[TARGET] != other.at_least[TARGET]
    for result, smaller in (("at_least", True), ("pixel_strength", True), ("q_value", False)):
        values = getattr(one, result), getattr(other, result)
        assert np.array_equal(getattr(both, result), np.minimum(*values) if smaller else np.maximum(*values))


def test_where_the_detector_identifies_a_trigger_its_judgement_alone_is_flagged():
    scores, rows = scores_of(triggered=90)
    missed = np.isin(np.arange(len(scores)), rows[:30])
    scores = replace(scores, trigger_score=np.where(missed, 0.1, scores.trigger_score))
    evidence = judged(scores)
    assert (evidence.early.flagged & missed).any()
    positive = (scores.trigger_score > DETECTOR.flagged) & (scores.labels == TARGET)
    assert np.array_equal(evidence.flagged, positive)


def test_the_dirty_label_axis_asks_the_model_that_has_gone_on_learning():
    late, _ = scores_of(triggered=90, by_detector=False)
    unlearned = replace(late, late_nll=np.random.default_rng(1).random(len(late)))
    assert judged(replace(late, early_nll=unlearned.late_nll)).triggered[TARGET]
    assert not judged(unlearned).triggered[TARGET]


def test_a_class_of_which_early_belief_flags_nothing_is_not_suspected():
    # Improbable labels are believed rather early, but none of them among the very first.
    scores, rows = scores_of(3, triggered=30, by_detector=False, early=False)
    late = scores.late_nll.copy()
    late[rows] = np.linspace(0.1, 0.2, 30)
    evidence = judged(replace(scores, late_nll=late))
    assert evidence.early.suspected.nonzero()[0].tolist() == [TARGET]
    assert not evidence.flagged.any()
    assert not evidence.suspected.any()
    late[rows] = np.linspace(0, 0.03, 30)
    evidence = judged(replace(scores, late_nll=late))
    assert evidence.triggered.nonzero()[0].tolist() == [TARGET]
    assert evidence.flagged[rows].any()


def test_fewer_positive_samples_than_a_handful_are_none():
    scores, _ = scores_of(positive=0.0)
    for number in (HANDFUL - 1, HANDFUL):
        score = scores.trigger_score.copy()
        score[:number] = 1.0
        for side in sides_of(replace(scores, trigger_score=score), MAP, DETECTOR):
            assert side.positive.sum() == (0 if number < HANDFUL else number)


def test_sides_differ_in_the_content_alone_and_no_sample_is_on_both():
    scores, _ = scores_of(triggered=30)
    scores = replace(scores, probe_class=(scores.guide_class + 1) % K)
    guide, probe = sides_of(scores, MAP, DETECTOR)
    assert np.array_equal(guide.content, scores.guide_class)
    assert np.array_equal(probe.content, scores.probe_class)
    for name in ("candidates", "trusted", "positive", "labels"):
        assert np.array_equal(getattr(guide, name), getattr(probe, name))
    assert not (guide.candidates & guide.trusted).any()
    rank = np.argsort(np.argsort(scores.early_nll)) / len(scores)
    assert guide.candidates[rank < MAP.candidate - 0.01].all()
    assert not guide.trusted[rank < MAP.clean - 0.01].any()


@pytest.mark.parametrize(("p_value", "suspected"), [(ALPHA / 5 - 1e-6, True), (ALPHA / 5 + 1e-6, False)])
def test_labels_alone_betray_a_class_that_has_no_trigger(p_value, suspected):
    scores, _ = scores_of(1, triggered=90)
    low = np.ones(K)
    low[[TARGET, 3]] = p_value
    evidence = judged(replace(scores, exchange=exchange_of(low)))
    assert evidence.triggered.nonzero()[0].tolist() == [TARGET]
    assert evidence.wrong_labels.nonzero()[0].tolist() == [TARGET, 3] * suspected
    assert evidence.suspected.nonzero()[0].tolist() == [TARGET, 3][: 1 + suspected]
    assert np.array_equal(evidence.flagged, judged(scores).flagged)


@pytest.mark.parametrize(("excess", "suspected"), [(2.9, False), (3.0, True)])
def test_labels_alone_betray_a_class_only_if_they_are_a_thousandth_of_the_data(excess, suspected):
    scores, _ = scores_of(n=3000)
    scores = replace(scores, exchange=exchange_of([1, 1, 1, 1, ALPHA / 5], excess))
    assert judged(scores).wrong_labels.nonzero()[0].tolist() == [4] * suspected


@pytest.mark.parametrize(
    ("n", "p_value", "suspected"),
    [(3000, ALPHA / 20, True), (3000, ALPHA / 19, False), (FEWEST_SAMPLES - 1, 0.0, False)],
)
def test_labels_from_deep_inside_another_class_betray_a_class(n, p_value, suspected):
    scores, _ = scores_of(n=n)
    one_way = OneWayLabels(
        p_value=np.array([1, 1, 1, p_value, 1]), source=np.array([-1, -1, -1, 0, -1]), share=np.zeros(K)
    )
    evidence = judged(replace(scores, one_way=one_way))
    assert evidence.one_way.nonzero()[0].tolist() == [3] * suspected
    assert evidence.suspected.nonzero()[0].tolist() == [3] * suspected


def test_bounds_of_both_axes_hold_in_nearly_all_draws():
    failing, bounds = 0, []
    for seed in range(60):
        scores, rows = scores_of(seed, triggered=80, positive=0.03)
        evidence = judged(scores)
        failing += evidence.at_least[TARGET] > len(rows) or evidence.at_least[the_others()].any()
        bounds.append(evidence.at_least[TARGET])
    assert failing <= binom.ppf(0.999, 60, ALPHA)
    assert np.median(bounds) >= 40


def test_the_order_of_the_rows_does_not_matter():
    scores, _ = scores_of(triggered=90, positive=0.03)
    order = np.random.default_rng(9).permutation(len(scores))
    values = {field.name: getattr(scores, field.name) for field in fields(scores)}
    moved = SampleScores(**{k: v[order] if isinstance(v, np.ndarray) else v for k, v in values.items()})
    here, there = judged(scores), judged(moved)
    for of_classes in ("pixel_strength", "triggered", "wrong_labels", "at_least"):
        assert np.array_equal(getattr(here, of_classes), getattr(there, of_classes))
    for of_samples in ("flagged", "q_value"):
        assert np.array_equal(getattr(here, of_samples)[order], getattr(there, of_samples))


def test_a_partition_flags_exactly_what_the_evidence_does_and_moves_nothing_else():
    scores, _ = scores_of(triggered=90)
    evidence, n = judged(scores), len(scores)
    states = np.array([State.CLEAN, State.UNCERTAIN, State.TRIGGER], dtype=np.uint8)
    state = states[np.random.default_rng(0).integers(0, 3, n)]
    moved = with_evidence(partition_of(state, np.zeros(n), K), evidence)
    for before, after, flagged in zip(state, moved.state, evidence.flagged, strict=True):
        if flagged:
            assert after == State.TRIGGER
        else:
            assert after == (State.UNCERTAIN if before == State.TRIGGER else before)
