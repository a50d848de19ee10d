"""detection.label_flow: what a refitted probe makes of flagged labels, and what becomes of the partition."""

from dataclasses import replace

import numpy as np
import pytest

from clipguard.detection.label_flow import (
    FOLDS,
    label_only_poison,
    label_q_values,
    refitted_label_flow,
    too_few_to_refit,
    with_label_flags,
)
from clipguard.seeds import Seed
from clipguard.types import State, partition_of
from tiny_labels import CONFIG, K, blobs, flow_of, nobody, probe_of, relabelled, view_of

C, U, X, T, L = State.CLEAN, State.UNCERTAIN, State.EXCLUDED, State.TRIGGER, State.LABEL


def partition(states, suspicion=None, k=K):
    """Return a partition of samples in these states."""
    state = np.array(states, dtype=np.uint8)
    return partition_of(state, np.zeros(len(state)) if suspicion is None else np.array(suspicion), k)


def all_clean(labels, k=K):
    return partition([C] * len(labels), k=k)


def test_flagged_labels_are_set_apart_with_excluded_ones_and_rise_in_the_ranking():
    before = partition([C, C, T, U, U, C], [0.2, 0.4, 0.9, 0.5, 0.6, 0.1])
    labels = np.array([3, 1, 3, 0, 3, 3])
    log_probs = np.log(np.array([[0.1, 0.2, 0.3, 0.4]] * 6))
    flow = flow_of(np.arange(6) == 0, np.isin(np.arange(6), [1, 2]), log_probs, labels)
    kept, fingerprint = flow.soft_labels.copy(), before.fingerprint
    after = with_label_flags(before, labels, flow, CONFIG)
    assert np.array_equal(flow.soft_labels, kept)
    assert before.fingerprint == fingerprint
    # What is flagged for a trigger stays so; what was clean or uncertain may still be.
    assert after.state.tolist() == [L, X, T, U, U, C]
    assert after.suspicion.tolist() == [0.6, 0.4, 0.9, 0.5, 0.6, 0.1]
    # A class in which the refitted probe only excludes is quarantined, too.
    assert after.quarantined == (1, 3)
    # Whatever is not flagged for a trigger in a quarantined class: the features may flag it later.
    assert after.soft_rows.tolist() == [0, 1, 4, 5]
    # What the labels of class 3 leave to the others, as a distribution, and so of class 1.
    of_class_3, of_class_1 = [1 / 6, 1 / 3, 1 / 2, 0], [1 / 8, 0, 3 / 8, 1 / 2]
    expected = np.array([of_class_3, of_class_1, of_class_3, of_class_3])
    assert after.soft_labels == pytest.approx(expected)


def test_without_a_flag_the_partition_stays_as_it_is_and_excluded_labels_give_no_soft_ones():
    labels, log_probs = np.array([3, 1, 3, 0]), np.log(np.full((4, K), 0.25))
    before, nothing = all_clean(labels), flow_of(nobody(labels), nobody(labels), log_probs, labels)
    assert with_label_flags(before, labels, nothing, CONFIG) is before
    excluded = flow_of(nobody(labels), labels == 3, log_probs, labels)
    after = with_label_flags(before, labels, excluded, CONFIG)
    assert after.state.tolist() == [X, C, X, C]
    assert after.quarantined == (3,)
    assert not len(after.soft_rows)


def marked(count):
    """Return embeddings, labels and which are poisoned: those share something that the probe sees."""
    embeddings, labels = blobs(spread=0.8)
    changed, poisoned = relabelled(labels, count)
    embeddings[poisoned, -1] += 3
    return embeddings, changed, poisoned


def first_flow(embeddings, labels):
    """Return the first flow and its view; the guide is the probe."""
    probe = probe_of(embeddings, labels)
    view = view_of(labels, probe.loss)
    return label_only_poison(view, probe, CONFIG), view


def same(one, other):
    """Return whether two flows flag and exclude the same labels by the same losses."""
    return all(np.array_equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))


def refitted(embeddings, view, flow, config=CONFIG):
    return refitted_label_flow(embeddings, view, flow, config, Seed(0))


def test_a_probe_that_has_not_learnt_the_flagged_labels_flags_more_of_their_like():
    embeddings, labels, poisoned = marked(150)
    first, view = first_flow(embeddings, labels)
    second = refitted(embeddings, view, first)
    assert first.flagged[poisoned].sum() < second.flagged[poisoned].sum()
    left = [(poisoned & ~flow.flagged & ~flow.excluded).sum() for flow in (first, second)]
    assert left[1] < left[0] / 2
    assert second.flagged[~poisoned].mean() < 0.02
    assert not (second.flagged & second.excluded).any()
    assert set(labels[second.flagged | second.excluded]) == {0}


def test_a_quarantined_class_counts_for_as_many_as_are_estimated_clean():
    embeddings, labels, poisoned = marked(150)
    first, view = first_flow(embeddings, labels)
    flow = refitted(embeddings, view, first)
    clean = np.bincount(labels[~poisoned])
    assert (labels[flow.flagged] == 0).all()
    # Poison that is not flagged does not count either, unless it is more than what is flagged.
    for share in (1.0, 0.6, 0.2):
        kept = flow.flagged & (np.random.default_rng(0).random(len(labels)) < share)
        after = with_label_flags(all_clean(labels), labels, flow._replace(flagged=kept), CONFIG)
        rest = np.bincount(labels[~after.flagged], minlength=K)
        least = rest - np.array([kept.sum(), 0, 0, 0])
        assert after.clean_share * rest == pytest.approx(np.maximum(clean, least), rel=0.1)
        assert (after.clean_share[1:] == 1).all()


def test_a_class_that_is_hard_and_next_to_nothing_of_it_poisoned_counts_almost_whole():
    draw = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 1000)
    own = np.where(draw.random(3000) < np.where(labels == 0, 0.3, 0.05), 0.1, 0.9)
    log_probs = np.log(np.full((3000, 3), 0.05))
    log_probs[np.arange(3000), labels] = np.log(own)
    flow = flow_of(np.arange(3000) < 2, nobody(labels), log_probs, labels)
    after = with_label_flags(all_clean(labels, 3), labels, flow, CONFIG)
    assert after.clean_share == pytest.approx(np.array([996 / 998, 1, 1]))


def test_the_clean_share_is_a_number_where_nothing_is_left_to_compare_with():
    labels = np.array([0, 0, 0, 1])
    before = partition([U, U, U, T], k=2)
    log_probs = np.log(np.array([[0.9, 0.1], [0.1, 0.9], [0.1, 0.9], [0.9, 0.1]]))
    flow = flow_of(np.arange(4) == 1, nobody(labels), log_probs, labels)
    assert with_label_flags(before, labels, flow, CONFIG).clean_share.tolist() == [0.5, 1.0]


def test_where_next_to_nothing_of_a_class_is_left_to_learn_from_the_first_flow_stands():
    embeddings, labels, _ = marked(150)
    first, view = first_flow(embeddings, labels)
    whole_class = first._replace(flagged=labels == 0)
    assert same(refitted(embeddings, view, whole_class), whole_class)
    assert too_few_to_refit(view, whole_class)
    assert not too_few_to_refit(view, first)


def test_where_the_first_flow_stands_it_gets_the_soft_labels_of_the_suspected_classes():
    embeddings, labels, _ = marked(150)
    probe, nothing = probe_of(embeddings, labels), np.zeros(0, np.int64)
    view = view_of(labels, probe.loss)
    without = probe._replace(soft_rows=nothing, soft_labels=np.zeros((0, K), np.float32))
    whole_class = label_only_poison(view, without, CONFIG)._replace(flagged=labels == 0)
    flow = refitted(embeddings, view, whole_class)
    assert np.array_equal(flow.soft_rows, np.flatnonzero(labels == 0))
    assert np.array_equal(flow.soft_labels, probe.soft_labels[flow.soft_rows])


@pytest.mark.parametrize("kept", [2 * FOLDS - 1, 2 * FOLDS])
@pytest.mark.parametrize("side", ["flagged", "excluded"])
def test_a_refit_needs_two_samples_a_fold_of_each_suspected_class(kept, side):
    embeddings, labels, _ = marked(150)
    first, view = first_flow(embeddings, labels)
    members = np.flatnonzero(labels == 0)
    flow = first._replace(flagged=nobody(labels), excluded=nobody(labels))
    flow.flagged[members[0]] = True
    getattr(flow, side)[members[1 : len(members) - kept]] = True
    few = kept < 2 * FOLDS
    assert too_few_to_refit(view, flow) == few
    assert same(refitted(embeddings, view, flow), flow) == few


def test_a_class_that_is_not_suspected_may_be_small():
    labels = np.repeat([0, 1], [40, 3])
    flow = flow_of(np.arange(43) < 5, nobody(labels), np.zeros((43, 2)), labels)
    assert not too_few_to_refit(view_of(labels), flow)
    assert too_few_to_refit(view_of(labels), flow._replace(flagged=np.arange(43) > 41))


def test_a_refitted_probe_scores_what_it_leaves_out_and_explained_samples_have_no_say():
    embeddings, labels, poisoned = marked(150)
    first, view = first_flow(embeddings, labels)
    second = refitted(embeddings, view, first)
    assert (second.flagged | second.excluded)[first.flagged].mean() > 0.9
    explained = poisoned & (np.arange(len(labels)) % 2 == 0)
    assert (second.flagged | second.excluded)[explained].mean() > 0.5
    third = refitted(embeddings, replace(view, unexplained=~explained), first)
    assert not (third.flagged | third.excluded)[explained].any()


def test_labels_with_a_moderate_loss_count_as_clean_as_often_as_in_other_classes():
    # Of 20 unflagged labels of class 0, 4 have a low loss; elsewhere, 3 of 4 correct ones have.
    labels = np.repeat([0, 1], [35, 20])
    flagged, low_loss = np.arange(55) < 15, np.isin(np.arange(55), [*range(15, 19), *range(35, 50)])
    log_probs = np.full((55, 2), -9.0)
    log_probs[np.arange(55), labels] = np.where(low_loss, -0.1, -2.0)
    flow = flow_of(flagged, nobody(labels), log_probs, labels)
    after = with_label_flags(all_clean(labels, 2), labels, flow, CONFIG)
    assert after.clean_share == pytest.approx([4 / 0.75 / 20, 1.0])


def test_a_refitted_probe_has_a_bound_of_its_own():
    embeddings, labels, _ = marked(150)
    first, view = first_flow(embeddings, labels)
    strict, loose = (
        refitted(embeddings, view, first, replace(CONFIG, refit_flag_loss=b)) for b in (9.0, 2.0)
    )
    for bound, flow in ((9.0, strict), (2.0, loose)):
        assert (flow.loss[flow.flagged] > bound).all()
    assert loose.flagged.sum() > strict.flagged.sum() > 0


def quarantined(labels, *classes):
    return replace(all_clean(labels), quarantined=classes)


def test_a_q_value_is_the_mean_chance_of_being_correct_among_the_labels_of_its_class_with_no_lower_loss():
    draw = np.random.default_rng(0)
    labels = draw.integers(0, K, 300)
    # Rounded losses tie, and several labels have no opinion against them at all.
    loss = np.maximum(0.0, np.round(draw.normal(1.0, 2.0, 300), 1))
    q_values = label_q_values(quarantined(labels, 1, 3), labels, loss)
    for row in range(300):
        reached = (labels == labels[row]) & (loss >= loss[row])
        expected = np.exp(-loss[reached]).mean() if labels[row] in (1, 3) else 1.0
        assert q_values[row] == pytest.approx(expected)


def test_the_q_values_of_a_calibrated_probe_are_the_shares_of_correct_labels():
    draw = np.random.default_rng(1)
    labels, loss = np.zeros(40_000, dtype=np.int64), draw.exponential(2.0, 40_000)
    correct = draw.random(40_000) < np.exp(-loss)
    q_values = label_q_values(quarantined(labels, 0), labels, loss)
    for bound in (0.02, 0.1, 0.3):
        assert correct[q_values <= bound].mean() == pytest.approx(bound, rel=0.1)


def test_without_a_quarantined_class_or_a_sample_of_it_all_q_values_are_1():
    labels, loss = np.arange(8) % 2, np.arange(8.0)
    assert (label_q_values(quarantined(labels), labels, loss) == 1).all()
    assert (label_q_values(quarantined(labels, 3), labels, loss) == 1).all()
