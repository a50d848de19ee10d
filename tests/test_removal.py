"""detection.removal: a net that has not met a poisoned group does not believe its label."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipguard.compute.small_nets import SmallNetConfig
from clipguard.detection import removal as removal_module
from clipguard.detection.entropy_map import EntropyMapConfig
from clipguard.detection.removal import (
    Agreement,
    Belief,
    agreements,
    beliefs,
    causes,
    removal,
    trusted_samples,
)
from clipguard.detection.trigger_detector import TriggerDetectorConfig
from clipguard.seeds import Seed
from tiny_labels import scores_of
from tiny_runs import poisoned_set

draws = st.integers(0, 2**32)
NET = SmallNetConfig(
    architecture="shallow-8", epochs=5, batch_size=8, optimizer="adam", lr=2e-3, schedule="constant"
)


@given(st.integers(1, 200), st.integers(1, 6), st.floats(0, 1), st.floats(0, 1), draws)
def test_scored_samples_are_learned_from_by_neither_net_and_the_group_by_the_first_alone(
    n, k, share, trust, seed
):
    draw = np.random.default_rng(seed)
    labels, flagged = draw.integers(0, k, n), draw.random(n) < share
    trusted = (draw.random(n) < trust) & ~flagged
    split = removal(labels, trusted, flagged, Seed(seed))
    scored = split.group | split.trusted
    assert not (split.group & split.trusted).any()
    assert not ((split.with_group | split.without_group) & scored).any()
    assert (split.with_group | scored).all()
    assert not (split.without_group & ~trusted).any()
    assert not (split.without_group & flagged).any()
    for label in range(k):
        members = labels == label
        held_out = int((split.group & members).sum())
        assert held_out == -(-int((flagged & members).sum()) // 2)
        spared = int((split.trusted & members).sum())
        assert spared == min(held_out, int((trusted & members).sum()) // 2)


def test_halves_are_drawn_anew_by_another_seed():
    flagged = np.arange(60) < 30
    one, again, other = (removal(np.zeros(60, np.int64), ~flagged, flagged, Seed(s)) for s in (0, 0, 1))
    assert np.array_equal(one.group, again.group)
    assert (one.group != other.group).any()


def test_without_a_flagged_sample_nothing_is_trained(monkeypatch):
    monkeypatch.delattr(removal_module, "train_small_nets")
    data, _ = poisoned_set(60)
    nobody = np.zeros(60, dtype=bool)
    assert beliefs(data, ~nobody, nobody, NET, Seed(0)) == ()


def test_a_trigger_is_believed_only_by_the_net_that_has_met_it_and_a_class_by_both():
    data, poisoned = poisoned_set(360, seed=3)
    # The group of class 1 is as innocent as the rest of it.
    innocent = (data.labels == 1) & (np.arange(360) % 3 == 1) & (np.arange(360) < 120)
    flagged = (poisoned & (data.labels == 0)) | innocent
    trigger, natural = beliefs(data, ~flagged & ~poisoned, flagged, NET, Seed(0))
    assert (trigger.label, natural.label) == (0, 1)
    assert trigger.group_with > 0.8
    # A third of the images that carry the trigger show the class that they are labelled with.
    assert trigger.group_without < 0.5
    assert natural.group_with > 0.8
    assert natural.group_without > 0.8
    for belief in (trigger, natural):
        assert belief.trusted_with > 0.8
        assert belief.trusted_without > 0.8
        assert belief.held_out == belief.trusted > 10


def recorded(monkeypatch):
    """Return what nets learned from; none is trained. For row r, class 0 has odds of r + 1."""
    learned = []

    class Constant:
        def __init__(self, logits):
            self.logits = logits

    def no_training(config, images, outputs, loss, trainable, seed, on_epoch):
        learned.append((trainable, config, seed))
        logits = np.zeros((len(images), outputs), dtype=np.float32)
        logits[:, 0] = np.log(np.arange(1, len(images) + 1))
        return Constant(logits)

    monkeypatch.setattr(removal_module, "train_small_nets", no_training)
    return learned


def test_belief_is_the_mean_probability_of_the_given_label(monkeypatch):
    learned = recorded(monkeypatch)
    data, _ = poisoned_set(90)
    flagged = np.arange(90) < 40
    result = beliefs(data, ~flagged, flagged, replace(NET, runs=3), Seed(0))
    held_out = ~(learned[0][0] | learned[1][0]) & flagged
    for belief in result:
        rows = [row for row in range(90) if held_out[row] and data.labels[row] == belief.label]
        odds = [(row + 1 if belief.label == 0 else 1) / (row + 3) for row in rows]
        assert belief.held_out == len(rows)
        assert belief.group_with == pytest.approx(sum(odds) / len(odds))
        assert belief.group_without == belief.group_with
    # One run of each, which start from the same weights.
    assert [config.runs for _, config, _ in learned] == [1, 1]
    assert learned[0][2] == learned[1][2]


def test_of_too_many_samples_the_flagged_ones_are_kept(monkeypatch):
    learned = recorded(monkeypatch)
    monkeypatch.setattr(removal_module, "MOST_ROWS", 60)
    data, _ = poisoned_set(240)
    flagged = np.arange(240) < 30
    beliefs(data, ~flagged, flagged, NET, Seed(0))
    (with_group, _, _), (without, _, _) = learned
    assert with_group.sum() == without.sum() == 60
    assert (with_group & flagged).sum() == sum(
        int((data.labels[:30] == label).sum()) // 2 for label in range(3)
    )
    assert not (without & flagged).any()


def test_without_a_trusted_sample_nothing_is_trained_and_nothing_said(monkeypatch):
    learned = recorded(monkeypatch)
    data, _ = poisoned_set(90)
    flagged = np.arange(90) < 30
    assert beliefs(data, np.zeros(90, dtype=bool), flagged, NET, Seed(0)) == ()
    assert not learned


def test_a_class_without_trusted_samples_has_no_belief_about_them(monkeypatch):
    recorded(monkeypatch)
    data, _ = poisoned_set(90)
    flagged = (data.labels == 0) & (np.arange(90) < 40)
    (belief,) = beliefs(data, data.labels == 1, flagged, NET, Seed(0))
    assert belief.trusted == 0
    assert belief.trusted_with is None
    assert belief.trusted_without is None


def belief(group_with, group_without, trusted_with=0.3, trusted_without=0.3, held_out=20):
    return Belief(
        label=0,
        held_out=held_out,
        group_with=group_with,
        group_without=group_without,
        trusted=20,
        trusted_with=trusted_with,
        trusted_without=trusted_without,
    )


WRONG_LABELS = Agreement(agreeing=4, flagged=100, rest_agreeing=500, rest=900)
RIGHT_LABELS = Agreement(agreeing=50, flagged=100, rest_agreeing=500, rest=900)


@pytest.mark.parametrize(
    ("believed", "agreement", "cause"),
    [
        (belief(0.9, 0.1), WRONG_LABELS, "trigger"),
        (belief(0.9, 0.1), RIGHT_LABELS, "shortcut"),
        (belief(0.9, 0.8), WRONG_LABELS, "natural"),
        (belief(0.4, 0.5), RIGHT_LABELS, "natural"),
        # The second net knows less of the whole class.
        (belief(0.9, 0.4, 0.9, 0.4), WRONG_LABELS, "natural"),
        # That the second net knows a class better does not speak against a natural group.
        (belief(0.5, 0.4, 0.2, 0.6), RIGHT_LABELS, "natural"),
        (belief(0.55, 0.3), WRONG_LABELS, "undecided"),
        # Neither net believes the label.
        (belief(0.1, 0.05), WRONG_LABELS, "undecided"),
        (belief(0.9, 0.1, held_out=4), WRONG_LABELS, "undecided"),
        # Nothing is known of the rest of the class.
        (belief(0.9, 0.1, None, None), WRONG_LABELS, "trigger"),
        (belief(0.9, 0.1, 0.2, None), WRONG_LABELS, "trigger"),
    ],
)
def test_a_cause_follows_from_who_believes_the_label_and_whether_the_guide_agrees(believed, agreement, cause):
    assert causes((believed,), (agreement,)) == (cause,)


@pytest.mark.parametrize(
    ("agreement", "wrong"),
    [
        (Agreement(agreeing=0, flagged=20, rest_agreeing=90, rest=100), True),
        # A difference that chance makes.
        (Agreement(agreeing=1, flagged=4, rest_agreeing=60, rest=100), False),
        # A difference that is sure and small.
        (Agreement(agreeing=600, flagged=1000, rest_agreeing=900, rest=1000), False),
        # A class that the guide cannot read.
        (Agreement(agreeing=0, flagged=200, rest_agreeing=0, rest=200), False),
        (Agreement(agreeing=0, flagged=50, rest_agreeing=0, rest=0), False),
        (Agreement(agreeing=0, flagged=0, rest_agreeing=30, rest=40), False),
    ],
)
def test_labels_are_wrong_where_the_guide_agrees_far_less_and_not_by_chance(agreement, wrong):
    assert agreement.labels_are_wrong is wrong


def test_the_chance_of_so_little_agreement_is_that_of_random_draws():
    # 13 of 60 samples are flagged, and 30 agree: how many of the flagged, if these are drawn at random?
    draw = np.random.default_rng(0)
    agreeing = np.arange(60) < 30
    drawn = np.array([draw.permutation(agreeing)[:13].sum() for _ in range(40_000)])
    rate = [(drawn <= few).mean() for few in (2, 3)]
    verdicts = [
        Agreement(agreeing=few, flagged=13, rest_agreeing=30 - few, rest=47).labels_are_wrong
        for few in (2, 3)
    ]
    assert rate[0] < 0.006
    assert rate[1] > 0.015
    assert verdicts == [True, False]


def test_trusted_are_those_whom_no_round_suspects_and_whose_label_in_a_suspected_class_is_likely():
    labels, flagged = np.repeat([0, 1], 10), np.zeros(20, dtype=bool)
    first, last, nll = np.zeros(20), np.zeros(20), np.zeros(20)
    flagged[0] = True
    first[[1, 11]], last[[2, 12]] = 0.6, 0.6
    # A tenth of the samples has the highest guide rank; class 1 is not suspected.
    nll[[3, 13]] = 9.0
    scores = scores_of(labels, 2, first_round=first, trigger_score=last, guide_nll=nll)
    trusted = trusted_samples(scores, flagged, EntropyMapConfig(), TriggerDetectorConfig())
    assert np.flatnonzero(~trusted).tolist() == [0, 1, 2, 3, 11, 12]


def test_where_the_guide_is_weak_labels_that_the_probe_finds_improbable_are_not_trusted():
    labels, flagged = np.repeat([0, 1], 10), np.arange(20) == 0
    probe_loss = np.zeros(20)
    # The two highest losses are a tenth; class 1 is not suspected.
    probe_loss[[4, 14]] = 9.0
    for agreeing, expected in ((4, [0, 4]), (14, [0])):
        guide_class = np.where(np.arange(20) < agreeing, labels, 1 - labels)
        scores = scores_of(labels, 2, guide_class=guide_class, probe_loss=probe_loss)
        trusted = trusted_samples(scores, flagged, EntropyMapConfig(), TriggerDetectorConfig())
        assert np.flatnonzero(~trusted).tolist() == expected


def test_agreements_count_flagged_samples_and_others_of_each_suspected_class():
    draw = np.random.default_rng(0)
    labels, guide_class = draw.integers(0, 2, 100), draw.integers(0, 2, 100)
    scores = scores_of(labels, 2, guide_class=guide_class)
    flagged = (labels == 1) & (np.arange(100) < 30)
    (one,) = agreements(scores, flagged)
    rows = [(int(flagged[row]), int(guide_class[row] == 1)) for row in range(100) if labels[row] == 1]
    assert (one.agreeing, one.flagged) == (rows.count((1, 1)), rows.count((1, 1)) + rows.count((1, 0)))
    assert (one.rest_agreeing, one.rest) == (rows.count((0, 1)), rows.count((0, 1)) + rows.count((0, 0)))
