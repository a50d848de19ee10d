"""detection.removal: a net that has never met a flagged group does not believe its label, unless it is right."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipguard.compute.small_nets import SmallNetConfig
from clipguard.detection import removal as removal_module
from clipguard.detection.removal import beliefs, removal
from clipguard.seeds import Seed
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
    """Return what nets learned from; none is trained, and each gives logits by which class 0 has odds of n:1."""
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
    assert (with_group & flagged).sum() == sum(int((data.labels[:30] == label).sum()) // 2 for label in range(3))
    assert not (without & flagged).any()


def test_a_class_without_trusted_samples_has_no_belief_about_them(monkeypatch):
    recorded(monkeypatch)
    data, _ = poisoned_set(90)
    flagged = (data.labels == 0) & (np.arange(90) < 40)
    (belief,) = beliefs(data, data.labels == 1, flagged, NET, Seed(0))
    assert belief.trusted == 0
    assert np.isnan([belief.trusted_with, belief.trusted_without]).all()
