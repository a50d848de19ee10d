"""detection.label_flow: label-only poison of one class is told from label errors that go both ways."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from clipguard.compute.cross_validation import fold_numbers
from clipguard.detection import label_flow
from clipguard.detection import linear_probe as probing
from clipguard.detection.label_flow import (
    GUIDE_LOSS,
    SURPLUS_Z,
    has_learned_trigger,
    label_flow_z,
    label_only_poison,
    small_classes,
)
from clipguard.detection.linear_probe import FOLDS, NO_LOG_PROB, Probe, fitted_probe, linear_probe
from clipguard.seeds import Seed
from tiny_labels import CONFIG, K, blobs, nobody, probe_from, probe_of, relabelled, view_of


def flagged_labels(embeddings, labels, guide_nll=None, unexplained=None):
    """Return which labels are flagged; the guide is the probe, unless its losses are given."""
    probe = probe_of(embeddings, labels)
    view = view_of(labels, probe.loss if guide_nll is None else guide_nll, unexplained)
    return label_only_poison(view, probe, CONFIG).flagged


def sure_probe(likeliest, labels, k, loss=9.0):
    """Return a probe that is sure of one class, and gives labels of another one that loss."""
    log_probs = np.full((len(labels), k), -9.0)
    log_probs[np.arange(len(labels)), labels] = -loss
    log_probs[np.arange(len(labels)), likeliest] = 0.0
    return probe_from(log_probs, labels)


@pytest.mark.parametrize("target", [0, 2])
def test_label_only_poison_of_one_class_is_flagged(target):
    embeddings, labels = blobs(spread=0.8)
    changed, poisoned = relabelled(labels, 60, target)
    flagged = flagged_labels(embeddings, changed)
    assert flagged[poisoned].mean() > 0.7
    assert flagged[~poisoned].mean() < 0.01


@pytest.mark.parametrize("more", [0, 1, 5])
def test_a_class_of_a_handful_hides_no_flow_into_another_one(more):
    draw = np.random.default_rng(6)
    n, k = 10_000, 10
    labels = np.arange(n) % k
    poisoned = np.flatnonzero(labels)[draw.permutation(9000)[:100]]
    likeliest, given = labels.copy(), labels.copy()
    given[poisoned] = 0
    # The handful has labels that the probe finds improbable, too.
    given = np.concatenate([given, np.full(more, k)])
    likeliest = np.concatenate([likeliest, draw.integers(0, k, more)])
    view = view_of(given, k=k + 1)
    flow = label_only_poison(view, sure_probe(likeliest, given, k + 1), CONFIG)
    assert np.array_equal(np.flatnonzero(flow.flagged), np.sort(poisoned))


def test_no_label_of_an_untouched_set_is_flagged_even_if_classes_overlap_and_differ_in_size():
    for seed in range(5):
        embeddings, labels = blobs((600, 200, 60, 20), spread=2.0, seed=seed)
        assert not flagged_labels(embeddings, labels).any()


def test_a_bias_that_all_classes_share_in_some_measure_is_no_attack_however_large_the_set(monkeypatch):
    # Each class is taken for its lower neighbour more often than the other way round, more or less so.
    draw = np.random.default_rng(4)
    n, k = 80_000, 10
    labels = draw.integers(0, k, n)
    bias = draw.uniform(0.0, 0.04, k)
    wrong = draw.random(n) < bias[labels]
    probe = sure_probe(np.where(wrong, (labels - 1) % k, labels), labels, k)
    view = view_of(labels)
    assert label_flow_z(view.unexplained, probe.likeliest, view).max() > SURPLUS_Z
    assert not label_only_poison(view, probe, CONFIG).flagged.any()
    monkeypatch.setattr(label_flow, "OUTLIER", -1e9)
    assert label_only_poison(view, probe, CONFIG).flagged.any()


def test_little_poison_stands_out_among_the_highest_losses_where_biases_hide_it_from_the_rest(monkeypatch):
    # Every class but the first is biased one way or the other, a little: by 6 nats, where poison reaches 9.
    n, k = 20_000, 10
    labels = np.arange(n) % k
    likeliest, depth = labels.copy(), np.full(n, 9.0)
    draw = np.random.default_rng(5)
    bias = np.array([0, 0.02, -0.02, 0.02, -0.02, 0.02, -0.02, 0.02, -0.02, 0])
    for one in range(1, 9, 2):
        biased = (labels == one) & (draw.random(n) < bias[one])
        likeliest[biased], depth[biased] = one + 1, 6.0
    poisoned = (labels == 0) & (draw.random(n) < 0.04)
    likeliest[poisoned] = draw.integers(1, k, poisoned.sum())
    probe, view = sure_probe(likeliest, labels, k, depth), view_of(labels)
    monkeypatch.setattr(label_flow, "EXTREME_SHARE", 0.003)
    assert np.array_equal(label_only_poison(view, probe, CONFIG).flagged, poisoned)
    monkeypatch.setattr(label_flow, "EXTREME_SHARE", 0.5)
    assert not label_only_poison(view, probe, CONFIG).flagged.any()


def test_labels_that_all_have_the_same_loss_are_all_counted():
    # More of them than are looked for: none has the highest loss.
    n, k = 4000, 10
    labels, poisoned = np.arange(n) % k, np.arange(n) % 40 == 0
    likeliest = np.where(poisoned, 1 + np.arange(n) // 40 % 9, labels)
    flow = label_only_poison(view_of(labels), sure_probe(likeliest, labels, k), CONFIG)
    assert np.array_equal(flow.flagged, poisoned)


def test_in_a_class_where_nothing_is_flagged_nothing_is_excluded_either():
    embeddings, labels = blobs()
    changed, _ = relabelled(labels, 60)
    probe = probe_of(embeddings, changed)
    assert label_only_poison(view_of(changed), probe, CONFIG).excluded.any()
    believing = view_of(changed, np.zeros(len(labels)))
    assert not label_only_poison(believing, probe, CONFIG).excluded.any()


def test_labels_of_one_class_alone_that_became_another_are_flagged_by_the_pair(monkeypatch):
    n, k = 6000, 6
    draw = np.random.default_rng(3)
    labels = np.arange(n) % k
    # All classes differ a little in the loss of their errors, and one gives a fifth away.
    likeliest = np.where(draw.random(n) < 0.1, draw.integers(0, k, n), labels)
    depth = np.where(likeliest == labels, 0.0, draw.exponential(6, n))
    moved = (labels == 5) & (draw.random(n) < 0.2)
    changed = np.where(moved, 2, labels)
    likeliest[moved], depth[moved] = 5, 7.0
    probe = pair_probe(likeliest, changed, depth, k)
    flow = label_only_poison(view_of(changed), probe, CONFIG)
    assert np.array_equal(np.unique(changed[flow.flagged]), [2])
    assert flow.flagged[moved].all()
    # Two such pairs are not far ahead of each other: confusion, of which there may be more.
    also = (labels == 4) & (draw.random(n) < 0.2)
    twice = np.where(also, 1, changed)
    two_pairs = pair_probe(np.where(also, 4, likeliest), twice, np.where(also, 7, depth), k)
    assert not label_only_poison(view_of(twice), two_pairs, CONFIG).flagged.any()
    monkeypatch.setattr(label_flow, "PAIR_Z", 1e9)
    assert not label_only_poison(view_of(changed), probe, CONFIG).flagged.any()


def pair_probe(likeliest, labels, depth, k):
    """Return a probe to which `depth` nats are between the likeliest class and all others."""
    own = np.eye(k, dtype=bool)[likeliest]
    return probe_from(np.where(own, 0.0, -np.where(likeliest == labels, 9.0, depth)[:, None]), labels)


def test_symmetric_noise_is_not_called_an_attack():
    embeddings, labels = blobs()
    draw = np.random.default_rng(3)
    noisy = draw.random(len(labels)) < 0.1
    labels = np.where(noisy, (labels + draw.integers(1, K, len(labels))) % K, labels)
    assert not flagged_labels(embeddings, labels).any()


def test_labels_that_the_guide_believes_are_left_alone():
    embeddings, labels = blobs()
    changed, _ = relabelled(labels, 60)
    assert not flagged_labels(embeddings, changed, guide_nll=np.zeros(len(labels))).any()


def test_where_a_trigger_explains_the_wrong_labels_no_more_are_flagged():
    embeddings, labels = blobs()
    changed, poisoned = relabelled(labels, 60)
    explained = poisoned & (np.random.default_rng(2).random(len(poisoned)) < 0.95)
    assert not flagged_labels(embeddings, changed, unexplained=~explained).any()


@pytest.mark.parametrize(("explained", "left_alone"), [(60, False), (61, True)])
def test_a_class_in_which_a_trigger_explains_more_than_would_be_flagged_is_left_alone(explained, left_alone):
    labels, wrong, view = half_explained(explained)
    flow = label_only_poison(
        view, sure_probe(np.where(wrong, 1 + np.arange(4000) % 9, labels), labels, 10), CONFIG
    )
    assert np.array_equal(flow.flagged, wrong & view.unexplained & (not left_alone))


def half_explained(explained):
    """Return labels, the wrong ones of class 0, and a view in which a trigger explains some of these."""
    labels = np.arange(4000) % 10
    rows = np.flatnonzero(labels == 0)[:120]
    wrong, unexplained = np.zeros(4000, dtype=bool), np.ones(4000, dtype=bool)
    wrong[rows], unexplained[rows[:explained]] = True, False
    return labels, wrong, view_of(labels, unexplained=unexplained)


@pytest.mark.parametrize(("believed", "left_alone"), [(49, False), (50, True)])
def test_a_class_whose_trigger_the_probe_has_learned_is_left_alone(believed, left_alone):
    # Of the 400 labels of the class, 60 are explained; of the other 340 the probe believes 280.
    labels, wrong, view = half_explained(60)
    likeliest = np.where(wrong, 1 + np.arange(4000) % 9, labels)
    likeliest[np.flatnonzero(~view.unexplained)[:believed]] = 0
    probe = sure_probe(likeliest, labels, 10)
    assert has_learned_trigger(view, probe).tolist() == [left_alone] + [False] * 9
    flow = label_only_poison(view, probe, CONFIG)
    assert np.array_equal(flow.flagged, wrong & view.unexplained & (not left_alone))


def test_a_sample_is_scored_by_a_probe_that_was_fitted_without_it():
    # A lone sample far from all others: a probe that has learnt it believes its label.
    embeddings, labels = blobs((40,) * K)
    embeddings[5] = 1000
    before = probe_of(embeddings, labels)
    changed = labels.copy()
    changed[5] = 3
    after = probe_of(embeddings, changed)
    assert before.likeliest[5] == after.likeliest[5]
    # Two labels leave different others, whose odds are the same.
    assert before.soft_labels[5, 1] * after.soft_labels[5, 2] == pytest.approx(
        before.soft_labels[5, 2] * after.soft_labels[5, 1]
    )


def test_samples_that_are_left_out_are_scored_but_not_learnt():
    embeddings, labels = blobs((40,) * K)
    left_out = np.arange(len(labels)) % 10 == 0
    moved = embeddings.copy()
    moved[left_out] += 5
    one, other = (probe_of(values, labels, left_out) for values in (embeddings, moved))
    assert np.array_equal(one.loss[~left_out], other.loss[~left_out])
    assert not np.array_equal(one.loss[left_out], other.loss[left_out])
    # The comparison can fail: learnt, those samples change the others' scores.
    assert not np.array_equal(probe_of(moved, labels).loss[~left_out], one.loss[~left_out])


def test_the_folds_are_drawn_from_the_seed():
    embeddings, labels = blobs((40,) * K)
    one, again, other = (probe_of(embeddings, labels, seed=seed).loss for seed in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_of_a_class_of_a_few_samples_the_probe_has_no_opinion():
    embeddings, labels = blobs((40, 40, 40, 6))
    probe = probe_of(embeddings, labels)
    assert (probe.loss[labels == 3] == 0).all()
    assert (probe.loss[labels != 3] > 0).all()
    assert set(probe.likeliest) == {0, 1, 2}
    assert (probe.soft_labels[:, 3] == 0).all()
    assert not flagged_labels(embeddings, labels)[labels == 3].any()


def test_samples_that_are_left_out_do_not_count_towards_the_fewest_of_a_class():
    embeddings, labels = blobs((40, 40, 40, 2 * FOLDS))
    left_out = np.arange(len(labels)) == len(labels) - 1
    assert (probe_of(embeddings, labels).loss > 0).all()
    assert (probe_of(embeddings, labels, left_out).loss[labels == 3] == 0).all()


def test_of_one_class_alone_the_probe_has_no_opinion_at_all():
    embeddings, labels = blobs((40, 4, 4, 4))
    probe, view = probe_of(embeddings, labels), view_of(labels)
    assert not probe.loss.any()
    assert not probe.likeliest.any()
    assert (probe.soft_labels == np.float32(1 / K)).all()
    assert not flagged_labels(embeddings, labels).any()
    assert np.isfinite(label_flow_z(view.unexplained, probe.likeliest, view)).all()


def test_a_probe_is_that_of_log_probabilities_of_all_samples_at_once():
    embeddings, labels = blobs((700, 40, 40, 6))
    probe, log_probs = probe_of(embeddings, labels), np.full((len(labels), K), NO_LOG_PROB)
    fold = fold_numbers(len(labels), FOLDS, Seed(0).generator())
    for number in range(FOLDS):
        rows = (fold != number) & (labels < 3)
        lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=[1 / 3] * 3)
        lda.fit(embeddings[rows].astype(float), labels[rows])
        log_probs[fold == number, :3] = lda.predict_log_proba(embeddings[fold == number].astype(float))
    slow = probe_from(log_probs, labels)
    for name in Probe._fields:
        np.testing.assert_allclose(getattr(probe, name), getattr(slow, name), rtol=1e-6, atol=1e-12)
    assert np.array_equal(probe.likeliest, slow.likeliest)


def test_soft_labels_are_given_for_the_samples_of_some_classes_alone():
    embeddings, labels = blobs((40,) * K)
    every = probe_of(embeddings, labels)
    some = linear_probe(embeddings, labels, np.array([False, True, False, True]), nobody(labels), Seed(0))
    assert np.array_equal(some.soft_rows, np.flatnonzero(labels % 2))
    assert np.array_equal(some.soft_labels, every.soft_labels[some.soft_rows])
    assert np.array_equal(some.loss, every.loss)


def test_a_probe_of_few_samples_says_nearly_the_same_as_one_of_many(monkeypatch):
    embeddings, labels = blobs((900, 600, 300, 30))
    every = probe_of(embeddings, labels)
    monkeypatch.setattr(probing, "MOST_ROWS", 700)
    some = probe_of(embeddings, labels)
    assert not np.array_equal(some.loss, every.loss)
    assert (some.likeliest == every.likeliest).mean() > 0.97
    assert np.corrcoef(some.loss, every.loss)[0, 1] > 0.9


def test_of_two_classes_a_probe_says_the_same_whatever_their_order():
    embeddings, labels = blobs((200, 200))
    embeddings = 8 * embeddings
    draw = Seed(3)
    nobody_left = np.zeros(400, bool)
    first, other = (fitted_probe(embeddings, some, 2, nobody_left, draw) for some in (labels, 1 - labels))
    rows = np.arange(400)
    for number in range(FOLDS):
        one, turned = (probe.log_probs(embeddings, number, rows) for probe in (first, other))
        np.testing.assert_allclose(one, turned[:, ::-1], rtol=1e-6)
        # Each sample has a loss of its own, also far from the border.
        assert all(len(np.unique(one[labels != label, label])) == 200 for label in (0, 1))


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(2, 5))
def test_the_z_score_is_the_difference_of_rates_in_standard_errors(seed, k):
    draw = np.random.default_rng(seed)
    n = 50
    labels = draw.integers(0, k, n)
    log_probs, guide = draw.normal(-3, 3, (n, k)), draw.exponential(4, n)
    unexplained, improbable = draw.random(n) < 0.8, draw.random(n) < 0.6
    view = view_of(labels, guide, unexplained, k)
    assume(not small_classes(view).any())
    z = label_flow_z(improbable & unexplained, log_probs.argmax(1), view)
    size = [max(1, sum(unexplained & (labels == c))) for c in range(k)]
    for c in range(k):
        into, out, variance = 0.0, 0.0, 0.0
        for i in range(n):
            likeliest = int(np.argmax(log_probs[i]))
            if unexplained[i] and improbable[i] and likeliest != labels[i]:
                if labels[i] == c:
                    into += 1 / size[c]
                    variance += 1 / size[c] ** 2
                if likeliest == c:
                    out += 1 / size[labels[i]]
                    variance += 1 / size[labels[i]] ** 2
        variance += sum(1 / k / size[c] ** 2 for _ in range(k)) + sum(1 / k / s**2 for s in size)
        assert z[c] == pytest.approx((into - out) / variance**0.5)


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(2, 5))
def test_only_unexplained_labels_with_a_high_loss_are_flagged_or_excluded(seed, k):
    draw = np.random.default_rng(seed)
    n = 50
    labels = draw.integers(0, k, n)
    log_probs, guide = draw.normal(-3, 3, (n, k)), draw.exponential(4, n)
    unexplained, loss = draw.random(n) < 0.8, -log_probs[np.arange(n), labels]
    with pytest.MonkeyPatch.context() as patch:
        # Every class is suspected that receives more than it loses, so that something is flagged.
        patch.setattr(label_flow, "SURPLUS_Z", 0.0)
        patch.setattr(label_flow, "OUTLIER", -1e9)
        view, probe = view_of(labels, guide, unexplained, k), probe_from(log_probs, labels)
        flow = label_only_poison(view, probe, CONFIG)
    assert not flow.flagged[~unexplained | (guide <= GUIDE_LOSS) | (loss <= CONFIG.flag_loss)].any()
    assert not flow.flagged[log_probs.argmax(1) == labels].any()
    assert not flow.excluded[~unexplained | (loss <= CONFIG.exclude_loss) | flow.flagged].any()
    assert np.array_equal(flow.loss, probe.loss)


def test_in_a_suspected_target_class_alone_labels_with_a_moderate_loss_are_excluded():
    embeddings, labels = blobs()
    changed, poisoned = relabelled(labels, 60, 2)
    probe = probe_of(embeddings, changed)
    # A guide that believes every second label, whatever it is: half of the poison is not flagged.
    guide = np.where(np.arange(len(labels)) % 2, probe.loss, 0.0)
    flow = label_only_poison(view_of(changed, guide), probe, CONFIG)
    assert 0.3 < flow.flagged[poisoned].mean() < 0.7
    assert (flow.flagged | flow.excluded)[poisoned].mean() > 0.9
    assert np.array_equal(flow.excluded, (changed == 2) & (probe.loss > CONFIG.exclude_loss) & ~flow.flagged)
    assert not label_only_poison(view_of(labels, guide), probe_of(embeddings, labels), CONFIG).excluded.any()
