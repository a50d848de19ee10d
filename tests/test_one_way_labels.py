"""detection.one_way_labels: labels of one class from deep inside another, against loops and known truth."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from clipguard.detection import one_way_labels as module
from clipguard.detection.class_evidence import ONE_WAY_ALPHA
from clipguard.detection.linear_probe import fitted_probe
from clipguard.detection.one_way_labels import (
    FEWEST,
    FEWEST_SHARE,
    LARGEST_RATIO,
    MARGIN,
    ODDS,
    one_way_labels,
)
from clipguard.detection.probed_labels import probed_labels
from clipguard.seeds import Seed
from tiny_labels import K, blobs, nobody, stub_probe


def judged(log_probs, labels, noise=0.0):
    n, k = log_probs.shape
    return one_way_labels(log_probs, labels, log_probs.argmax(1), stub_probe(n, k), noise, Seed(0))


def confused(n, k, seed):
    """Return log-probabilities of samples of all depths, and labels that follow them in part."""
    draw = np.random.default_rng(seed)
    log_probs = 2 * draw.normal(size=(n, k))
    noisy = log_probs + draw.gumbel(size=(n, k)) * np.linspace(0.3, 1.5, k)
    return log_probs, noisy.argmax(1)


def by_loops(log_probs, labels, noise):
    """Return p-value, source and share of each class, one pair and one sample after the other."""
    k, content = log_probs.shape[1], log_probs.argmax(1)
    counts = {}
    for t in range(k):
        for s in range(k):
            inside = [i for i in range(len(labels)) if content[i] == s and labels[i] in (s, t)]
            inside.sort(key=lambda i: log_probs[i, t] - log_probs[i, s])
            deep = inside[: (len(inside) + 1) // 2]
            moved = sum(int(labels[i] == t) for i in deep)
            counts[t, s] = moved, len(deep) - moved, sum(int(labels[i] == t) for i in inside)
    own, results = [int(((labels == c) & (content == c)).sum()) for c in range(k)], []
    for t in range(k):
        best = (1.0, -1, 0.0)
        for s in range(k):
            ratio = (content == t).sum() / max(1, (content == s).sum())
            enough = (
                counts[t, s][2] >= max(FEWEST, FEWEST_SHARE * own[s]),
                counts[s, t][2] >= max(FEWEST, FEWEST_SHARE * own[t]),
            )
            if s == t or not any(enough):
                continue
            size = own[t] / max(1, own[s])
            back = max(1, size) ** 2 * (counts[s, t][0] + 0.5) / (counts[s, t][1] + 0.5)
            odds = max(ODDS * max(1, ratio), MARGIN * back) + (noise / k) / (1 - noise + noise / k)
            moved, kept, _ = counts[t, s]
            p = min(1.0, k * (k - 1) * binom.sf(moved - 1, moved + kept, odds / (1 + odds)))
            if size > LARGEST_RATIO:
                p = 1.0
            if p < best[0]:
                best = (p, s, moved / max(1, moved + kept))
        results.append(best)
    return results


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_every_class_is_judged_as_loops_over_pairs_and_samples_judge_it(noise):
    rejected = 0
    for seed in range(6):
        log_probs, labels = confused(600, 5, seed)
        labels[(log_probs.argmax(1) == 3) & (np.arange(600) % 5 < 2)] = 1
        one = judged(log_probs, labels, noise)
        for label, (p_value, source, share) in enumerate(by_loops(log_probs, labels, noise)):
            assert one.p_value[label] == pytest.approx(p_value, rel=1e-9)
            if p_value < 1:
                assert (one.source[label], one.share[label]) == (source, pytest.approx(share))
            rejected += p_value < 0.01
    assert rejected


def test_labels_at_the_odds_of_the_null_are_rejected_no_more_often_than_the_level():
    draw, alarms, runs, k = np.random.default_rng(0), 0, 400, 2
    for _ in range(runs):
        depth = draw.normal(3, 1, 300).clip(0.1)
        log_probs = np.stack((depth, np.zeros(300)), 1)
        other = np.stack((np.zeros(300), draw.normal(3, 1, 300).clip(0.1)), 1)
        labels = np.concatenate((draw.random(300) < ODDS / (1 + ODDS), np.ones(300))).astype(np.int64)
        alarms += judged(np.concatenate((log_probs, other)), labels).p_value[1] <= 0.1 * k * (k - 1)
    # Adjusted by two pairs, the level of the one that is asked is 0.1: discrete, so at most that.
    assert alarms > 0
    assert binomtest(alarms, runs, 0.1, alternative="greater").pvalue > 0.001


@pytest.mark.parametrize("moved", [90, 150])
def test_labels_of_one_class_are_found_although_the_probe_has_learned_them(moved):
    for seed in range(5):
        embeddings, truth = blobs(seed=seed)
        labels = truth.copy()
        rows = np.random.default_rng(seed).choice(np.flatnonzero(truth == 2), moved, replace=False)
        labels[rows] = 1
        one = probed_labels(embeddings, labels, K, Seed(seed)).one_way
        assert one.p_value[1] <= ONE_WAY_ALPHA
        assert one.source[1] == 2
        assert one.share[1] == pytest.approx(moved / 300, abs=0.12)
        assert (np.delete(one.p_value, 1) > 0.05).all()


def test_honest_confusion_noise_and_rare_classes_raise_no_alarm():
    for seed in range(5):
        draw = np.random.default_rng(seed)
        embeddings, labels = blobs(spread=2.5, seed=seed)
        assert (probed_labels(embeddings, labels, K, Seed(seed)).one_way.p_value > 0.05).all()
        noisy = np.where(draw.random(len(labels)) < 0.4, draw.integers(0, K, len(labels)), labels)
        assert (probed_labels(embeddings, noisy, K, Seed(seed)).one_way.p_value > 0.05).all()
        # Two classes that nobody can tell apart hold each other's labels in both directions.
        same = np.where(labels == 1, draw.integers(1, 3, len(labels)), labels)
        same = np.where(labels == 2, draw.integers(1, 3, len(labels)), same)
        assert (probed_labels(embeddings, same, K, Seed(seed)).one_way.p_value > 0.05).all()
        for rare in (15, 150, 300):
            embeddings, labels = blobs((600, 600, rare, 600), spread=3.5, seed=seed)
            assert (probed_labels(embeddings, labels, K, Seed(seed)).one_way.p_value > 0.01).all()


def test_of_many_samples_some_are_drawn_and_say_the_same(monkeypatch):
    monkeypatch.setattr(module, "MOST_ROWS", 600)
    embeddings, truth = blobs(seed=3)
    labels = np.where((truth == 2) & (np.arange(len(truth)) % 3 == 0), 1, truth)
    fitted = fitted_probe(embeddings, labels, K, nobody(labels), Seed(0))
    one = one_way_labels(embeddings, labels, truth, fitted, 0.0, Seed(0))
    assert (one.source[1], one.p_value[1] < 0.01) == (2, True)
    assert one.share[1] == pytest.approx(1 / 3, abs=0.15)


def test_without_pairs_nothing_is_said():
    log_probs = np.eye(3)[np.arange(30) % 3] * 5
    one = judged(log_probs, np.arange(30) % 3)
    assert one.p_value.tolist() == [1.0, 1.0, 1.0]
    assert one.source.tolist() == [-1, -1, -1]


@pytest.mark.parametrize("sizes", [(150, 150, 9, 9), (9, 9, 9, 9)])
def test_nothing_is_said_of_classes_that_the_probe_does_not_know(sizes):
    embeddings, labels = blobs(sizes)
    one = probed_labels(embeddings, labels, K, Seed(0)).one_way
    assert (one.p_value == 1).all()
    assert (one.source[[size == 9 for size in sizes]] == -1).all()


def test_a_class_that_is_a_single_group_is_no_error():
    embeddings, labels = blobs((100, 100, 100, 30))
    groups = np.where(labels == 3, 9999, np.arange(len(labels)))
    probed = probed_labels(embeddings, labels, K, Seed(0), groups)
    assert (probed.probe.loss[labels == 3] == 0).all()
    assert (probed.probe.loss[labels != 3] > 0).all()
    assert (probed.one_way.p_value == 1).all()
    assert probed.exchange.p_value[3] == 1
    embeddings, labels = blobs((100, 100))
    groups = np.where(labels == 1, 9999, np.arange(len(labels)))
    assert not probed_labels(embeddings, labels, 2, Seed(0), groups).probe.loss.any()
