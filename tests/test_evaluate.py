"""lab.evaluation: rates counted one sample at a time, AUROC by its meaning."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipguard.lab.evaluation import auroc, detection, detection_by_scores, evaluate, found_at
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.types import EntropyMap, State, image_set, partition_of
from reference import detection as oracle

K = 3
draws = st.integers(0, 2**32)


def random_logits(n, seed):
    return np.random.default_rng(seed).normal(size=(n, K)).astype(np.float32)


def all_to(target, labels):
    """Return the target labels of an attack that sends everything to one class."""
    return np.full(len(labels), target)


def logits_for(predicted):
    """Return logits whose highest is the given class."""
    return np.eye(K, dtype=np.float32)[predicted]


@given(st.integers(1, 40), draws, st.sampled_from([0, 1, 2, "next", "any", "of one"]))
def test_rates_are_those_of_counting_one_sample_at_a_time(n, seed, kind):
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, K, n)
    kinds = {
        "next": (labels + 1) % K,
        "any": draw.integers(0, K, n),
        "of one": np.where(labels == 2, 0, labels),
    }
    target_labels = kinds[kind] if kind in kinds else np.full(n, kind)
    clean, triggered = random_logits(n, seed), random_logits(n, seed + 1)
    right = hit = robust = others = 0
    for label, target, before, after in zip(labels, target_labels, clean, triggered, strict=True):
        answer, attacked = list(before).index(max(before)), list(after).index(max(after))
        right += answer == label
        if label != target:
            others += 1
            hit += attacked == target
            robust += attacked == label
    result = evaluate(clean, triggered, labels, target_labels)
    assert result.n == n
    assert result.accuracy == pytest.approx(right / n)
    targets = [target for label, target in zip(labels, target_labels, strict=True) if label != target]
    classes = set(targets) or set(target_labels.tolist())
    predicted = [(label, list(row).index(max(row))) for label, row in zip(labels, clean, strict=True)]
    of_target = sum(label in classes for label, _ in predicted)
    recalled = sum(label in classes and label == answer for label, answer in predicted)
    one_class = len(classes) == 1 and of_target
    assert result.target_recall == (pytest.approx(recalled / of_target) if one_class else None)
    assert result.attack_success == (pytest.approx(hit / others) if others else None)
    assert result.robust_accuracy == (pytest.approx(robust / others) if others else None)


def test_the_target_class_itself_counts_for_no_attack():
    labels = np.array([0, 0, 1, 2])
    result = evaluate(logits_for(labels), logits_for(np.array([0, 0, 0, 2])), labels, all_to(0, labels))
    assert (result.accuracy, result.target_recall) == (1.0, 1.0)
    assert (result.attack_success, result.robust_accuracy) == (0.5, 0.5)


def test_where_each_class_is_sent_to_the_next_one_every_sample_counts_and_none_for_recall():
    labels = np.array([0, 1, 2, 2])
    result = evaluate(logits_for(labels), logits_for(np.array([1, 2, 2, 0])), labels, (labels + 1) % K)
    assert (result.accuracy, result.attack_success, result.robust_accuracy) == (1.0, 0.75, 0.25)
    assert result.target_recall is None


def test_without_target_labels_there_is_accuracy_only():
    labels = np.array([0, 1, 2, 2])
    result = evaluate(logits_for(np.array([0, 1, 2, 0])), None, labels, None)
    assert result.accuracy == 0.75
    assert result.target_recall is result.attack_success is result.robust_accuracy is None


def test_without_triggered_images_the_target_still_has_a_recall():
    labels = np.array([1, 1, 2])
    result = evaluate(logits_for(np.array([1, 0, 2])), None, labels, all_to(1, labels))
    assert result.target_recall == 0.5
    assert result.attack_success is None


def test_a_rate_over_no_sample_is_none_and_not_nan():
    labels = np.array([1, 1, 1])
    of_others = evaluate(logits_for(labels), logits_for(labels), labels, all_to(0, labels))
    assert of_others.target_recall is None
    assert of_others.attack_success == 0.0
    of_target = evaluate(logits_for(labels), logits_for(labels), labels, all_to(1, labels))
    assert of_target.target_recall == 1.0
    assert of_target.attack_success is of_target.robust_accuracy is None


pairs = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30)


@given(pairs)
def test_auroc_is_the_share_of_pairs_in_the_right_order(rows):
    scores, positive = (np.array(column) for column in zip(*rows, strict=True))
    result = auroc(scores.astype(float), positive)
    if positive.all() or not positive.any():
        assert result is None
    else:
        assert result == pytest.approx(oracle.auroc(scores.tolist(), positive.tolist()), abs=1e-12)


@given(pairs, draws)
def test_auroc_turns_around_with_the_scores_and_ignores_the_order_of_rows(rows, seed):
    scores, positive = (np.array(column) for column in zip(*rows, strict=True))
    scores = scores.astype(float)
    result = auroc(scores, positive)
    order = np.random.default_rng(seed).permutation(len(scores))
    assert auroc(scores[order], positive[order]) == result
    if result is not None:
        assert auroc(-scores, positive) == pytest.approx(1 - result)


@given(pairs)
def test_what_is_found_at_a_false_positive_rate_is_the_best_that_counting_finds(rows):
    scores, positive = (np.array(column) for column in zip(*rows, strict=True))
    scores, share = scores.astype(float), 0.3
    result = found_at(scores, positive, share)
    if positive.all() or not positive.any():
        assert result is None
        return

    def rates(threshold):
        above = scores >= threshold
        return above[~positive].mean(), above[positive].mean()

    points = [(0.0, 0.0), *(rates(threshold) for threshold in sorted(set(scores), reverse=True))]
    best = max(found for wrong, found in points if wrong <= share)
    # Between two thresholds, some of the ties are taken.
    beyond = [(wrong, found) for wrong, found in points if wrong > share]
    if not beyond:
        assert result == pytest.approx(best)
        return
    (left, low), (right, high) = max(point for point in points if point[0] <= share), min(beyond)
    assert result == pytest.approx(low + (high - low) * (share - left) / (right - left))


def test_a_detectors_scores_are_judged_and_a_sample_without_opinion_comes_last():
    _, _, truth = a_case(4, 0, 0.5)
    truth = replace(truth, poisoned=np.array([True, False, True, False]))
    scores = np.array([0.9, 0.1, np.nan, 0.5])
    result = detection_by_scores(scores, np.array([True, False, False, True]), truth)
    # Two pairs of four are in order: the one without an opinion is below both clean ones.
    assert result["auroc_suspicion"] == 0.5
    assert (result["flagged"], result["flagged_recall"], result["false_positive_rate"]) == (2, 0.5, 0.5)
    assert detection_by_scores(scores, None, truth).keys() == {
        "poisoned",
        "auroc_suspicion",
        "found_at_1_percent",
    }


def a_case(n, seed, poison):
    draw = np.random.default_rng(seed)
    guide, early, suspicion = draw.random((3, n))
    entropy = EntropyMap(guide_nll=guide, early_nll=early, guide_rank=guide, early_rank=early)
    partition = partition_of(draw.integers(0, len(State), n).astype(np.uint8), suspicion, 4)
    truth = PoisonTruth(
        poisoned=draw.random(n) < poison,
        cover=np.zeros(n, dtype=bool),
        original_labels=np.zeros(n, dtype=np.int64),
        attack="badnets",
        target=0,
    )
    return entropy, partition, truth


@given(st.integers(1, 40), draws, st.sampled_from([0.0, 0.3, 1.0]))
def test_detection_figures_are_those_of_counting(n, seed, poison):
    entropy, partition, truth = a_case(n, seed, poison)
    labels = np.random.default_rng(seed).integers(0, 3, n)
    data = image_set(np.zeros((n, 1, 1, 3), np.uint8), labels, ("a", "b", "c", "nobody"))
    result = detection(entropy, partition, data, truth)
    clean = [state in (State.CLEAN, State.KEPT) for state in partition.state.tolist()]
    flags = [state in (State.TRIGGER, State.LABEL, State.DROPPED) for state in partition.state.tolist()]
    of_class = [[i for i in range(n) if labels[i] == label] for label in range(4)]
    assert result["class_sizes"] == [len(members) for members in of_class]
    assert result["class_flagged"] == [sum(flags[i] for i in rows) for rows in of_class]
    assert result["class_wrongly_flagged"] == [
        sum(flags[i] and not truth.poisoned[i] for i in rows) for rows in of_class
    ]
    rows = list(zip(truth.poisoned.tolist(), clean, flags, strict=True))
    hits = sum(bad and flagged for bad, _, flagged in rows)
    flagged, bad = sum(row[2] for row in rows), sum(row[0] for row in rows)
    assert result["poisoned"] == bad
    assert result["clean"] == sum(row[1] for row in rows)
    assert result["poison_in_clean"] == sum(row[0] and row[1] for row in rows)
    assert result["flagged"] == flagged
    assert result["flagged_recall"] == (pytest.approx(hits / bad) if bad else None)
    assert result["flagged_precision"] == (pytest.approx(hits / flagged) if flagged else None)
    if 0 < bad < n:
        marks = truth.poisoned.tolist()
        assert result["auroc_guide"] == pytest.approx(oracle.auroc(entropy.guide_nll.tolist(), marks))
        lower_is_worse = (-entropy.early_nll).tolist()
        assert result["auroc_early"] == pytest.approx(oracle.auroc(lower_is_worse, marks))
        assert result["auroc_suspicion"] == pytest.approx(oracle.auroc(partition.suspicion.tolist(), marks))
    else:
        assert result["auroc_guide"] is result["auroc_early"] is result["auroc_suspicion"] is None
