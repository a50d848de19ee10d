"""detection.label_exchange and .certain_labels: targets of wrong labels, against redraws and brute force."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import binomtest, ks_2samp, poisson

from clipguard.detection import certain_labels as certain_module
from clipguard.detection import label_exchange as exchange_module
from clipguard.detection.certain_labels import (
    CERTAIN,
    NOISE_FLOOR,
    CertainLabels,
    certain_labels,
    recalibrated,
)
from clipguard.detection.label_exchange import LEVEL, MARGIN, label_exchange
from clipguard.detection.linear_probe import NO_LOG_PROB, fitted_probe
from clipguard.seeds import Seed
from tiny_labels import K, blobs, nobody, relabelled, stub_probe


def posteriors(n, k, seed=0, sharpness=3.0):
    """Return log-probabilities [n, k] of samples with all degrees of confusion."""
    logits = sharpness * np.random.default_rng(seed).normal(size=(n, k))
    return np.log(softmax(logits, axis=1))


def drawn_labels(chances, draw):
    return (draw.random(len(chances))[:, None] > chances.cumsum(1)[:, :-1]).sum(1)


def counted(log_probs, labels, unexplained=None, classes=None):
    n, k = log_probs.shape
    everyone = np.ones(n, dtype=bool) if unexplained is None else unexplained
    return certain_labels(log_probs, labels, everyone, stub_probe(n, k, classes), Seed(3))


def table(k, seed, bands=2):
    """Return expected counts of all sizes, and nothing observed."""
    draw = np.random.default_rng(seed)
    expected = draw.gamma(0.4, 5.0, (bands, k, k))
    expected[:, np.arange(k), np.arange(k)] = 0
    samples = draw.integers(50, 400, (bands, k))
    none = np.zeros((bands, k, k), dtype=np.int64)
    return CertainLabels(
        observed=none, expected=expected, samples=samples, own_share=np.full(k, 0.5), noise=0.0
    )


def naive_tails(labels, factor):
    """Return each class's statistic by loops over depths, pairs and groups."""
    bands, k, _ = labels.expected.shape
    tails = []
    for a in range(k):
        others = [b for b in range(k) if b != a]
        chances = []
        for depth in range(bands):
            observed = labels.observed[depth:, a].sum(0)
            mean = factor * labels.expected[depth:, a].sum(0)
            rate = mean / np.maximum(labels.samples[depth:].sum(0), 1)
            far = sorted(others, key=lambda b: rate[b])[: max(1, (k - 1) // 2)]
            chances += [(k - 1) * poisson.sf(observed[b] - 1, mean[b]) for b in others if observed[b]]
            chances += [poisson.sf(observed[group].sum() - 1, mean[group].sum()) for group in (others, far)]
        tails.append(min(chances))
    return np.array(tails)


@pytest.mark.parametrize("k", [2, 3, 7])
def test_the_statistic_is_the_smallest_chance_over_depths_pairs_and_groups(k):
    for seed in range(5):
        labels = table(k, seed)
        labels = replace(labels, observed=np.random.default_rng(seed).poisson(2 * labels.expected))
        tail = label_exchange(labels, Seed(0), redraws=1).tail
        np.testing.assert_allclose(tail, naive_tails(labels, MARGIN), rtol=1e-12)


def test_p_values_are_uniform_at_the_edge_of_the_null_and_larger_inside():
    labels, draw, p_values, inside = table(5, 1), np.random.default_rng(2), [], []
    for number in range(100):
        edge = replace(labels, observed=draw.poisson(MARGIN * labels.expected))
        within = replace(labels, observed=draw.poisson(labels.expected))
        p_values.append(label_exchange(edge, Seed(number), redraws=39).p_value.min())
        inside.append(label_exchange(within, Seed(number), redraws=39).p_value.min())
    for level in (0.1, 0.25, 0.5, 0.75):
        assert binomtest(int(np.sum(np.array(p_values) <= level)), len(p_values), level).pvalue > 0.01
    assert np.mean(inside) > np.mean(p_values) + 0.1


def test_redraws_of_counts_agree_with_redraws_of_every_label(monkeypatch):
    monkeypatch.setattr(exchange_module, "MARGIN", 1.0)
    monkeypatch.setattr(certain_module, "NOISE_FLOOR", 0.0)
    n, k, draw = 3000, 4, np.random.default_rng(5)
    log_probs = posteriors(n, k)
    first = drawn_labels(np.exp(log_probs), draw)
    labels = counted(log_probs, first)
    chances, band, likeliest = brute_force(log_probs, first)
    brute = []
    for _ in range(200):
        observed = np.zeros_like(labels.observed)
        again = drawn_labels(chances, draw)
        rows = (band >= 0) & (again != likeliest)
        np.add.at(observed, (band[rows], again[rows], likeliest[rows]), 1)
        brute.append(naive_tails(replace(labels, observed=observed), 1.0).min())
    nulls = [exchange_module._null(labels, depth) for depth in range(len(CERTAIN))]
    extremes = exchange_module._extremes(labels, nulls, 200, Seed(6))
    assert ks_2samp(extremes, brute).pvalue > 0.01


def brute_force(log_probs, labels):
    """Return the recalibrated chances of all labels, the bands and the likeliest classes, all at once."""
    n, k = log_probs.shape
    recalibration = recalibrated(log_probs, labels, np.bincount(labels, minlength=k) / n)
    likeliest = log_probs.argmax(1)
    ordered = np.sort(log_probs, axis=1)
    margin = ordered[:, -1] - ordered[:, -2]
    band = np.full(n, -1)
    for depth, share in enumerate(CERTAIN):
        for b in range(k):
            bound = np.quantile(margin[(likeliest == b) & (labels == b)], 1 - share)
            band[(likeliest == b) & (margin >= bound)] = depth
    return recalibration.posterior(log_probs), band, likeliest


def test_counts_agree_with_sums_over_all_samples():
    log_probs = posteriors(2500, 5)
    labels = drawn_labels(np.exp(log_probs), np.random.default_rng(1))
    certain = counted(log_probs, labels)
    chances, band, likeliest = brute_force(log_probs, labels)
    for depth in range(len(CERTAIN)):
        for b in range(5):
            inside = (band == depth) & (likeliest == b)
            assert certain.samples[depth, b] == inside.sum()
            for a in set(range(5)) - {b}:
                assert certain.observed[depth, a, b] == (labels[inside] == a).sum()
                expected = chances[inside, a].sum() + NOISE_FLOOR / 5 * inside.sum()
                assert certain.expected[depth, a, b] == pytest.approx(expected, rel=1e-6)
    own = [np.mean((band >= 0)[labels == b] & (likeliest == b)[labels == b]) for b in range(5)]
    np.testing.assert_allclose(certain.own_share, own)


def test_temperature_and_noise_of_a_simulation_are_recovered():
    draw, log_probs = np.random.default_rng(2), posteriors(20_000, 5)
    labels = drawn_labels(0.9 * np.exp(log_probs) + 0.1 / 5, draw)
    fit = recalibrated(3 * log_probs, labels, np.full(5, 0.2))
    assert fit.temperature == pytest.approx(3, rel=0.05)
    assert fit.noise == pytest.approx(0.1, abs=0.02)


def test_labels_drawn_from_the_posterior_give_p_values_that_are_not_too_small(monkeypatch):
    # The whole path with an exact null and no margin: 10 % of the p-values should be at most 0.1.
    monkeypatch.setattr(exchange_module, "MARGIN", 1.0)
    monkeypatch.setattr(certain_module, "NOISE_FLOOR", 0.0)
    log_probs, draw, p_values = posteriors(1500, 4), np.random.default_rng(8), []
    for number in range(60):
        labels = drawn_labels(0.95 * np.exp(log_probs) + 0.05 / 4, draw)
        # An overconfident probe: the recalibration has to find its temperature and the noise.
        p_values.append(
            label_exchange(counted(2 * log_probs, labels), Seed(number), redraws=39).p_value.min()
        )
    assert binomtest(int(np.sum(np.array(p_values) <= 0.1)), 60, 0.1, alternative="greater").pvalue > 0.01
    assert min(p_values) < 0.4


def exchange_of(embeddings, labels, k, unexplained=None):
    everyone = np.ones(len(labels), dtype=bool) if unexplained is None else unexplained
    fitted = fitted_probe(embeddings, labels, k, nobody(labels), Seed(0))
    return label_exchange(certain_labels(embeddings, labels, everyone, fitted, Seed(1)), Seed(2))


def test_flips_of_one_class_name_the_pair_and_about_their_number():
    embeddings, labels = blobs((400,) * K, spread=1.5)
    changed = labels.copy()
    changed[np.flatnonzero(labels == 3)[:60]] = 1
    exchange = exchange_of(embeddings, changed, K)
    assert np.flatnonzero(exchange.p_value <= 0.01).tolist() == [1]
    assert exchange.source[1] == 3
    assert exchange.one_source[1]
    assert exchange.strength[1] > MARGIN > np.delete(exchange.strength, 1).max()
    assert 20 < exchange.wrong_labels[1] < 90
    # Half of the samples of a class are certain.
    assert 10 < exchange.excess[1] < 60
    assert np.delete(exchange.excess, 1).max() < 3


def test_random_flips_to_one_class_stand_out_as_a_class_and_not_as_a_pair():
    embeddings, labels = blobs((300,) * 8, spread=1.2)
    changed, poisoned = relabelled(labels, 60, target=2)
    exchange = exchange_of(embeddings, changed, 8)
    assert np.flatnonzero(exchange.p_value <= 0.01).tolist() == [2]
    assert not exchange.one_source[2]
    assert 30 < exchange.wrong_labels[2] < 90
    explained = exchange_of(embeddings, changed, 8, unexplained=~poisoned)
    assert explained.p_value.min() > 0.05


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.3])
def test_data_as_they_are_and_symmetric_noise_raise_no_alarm(rate):
    embeddings, labels = blobs((400, 400, 100, 40), spread=2.0)
    draw = np.random.default_rng(4)
    moved = np.where(draw.random(len(labels)) < rate, draw.integers(1, K, len(labels)), 0)
    assert exchange_of(embeddings, (labels + moved) % K, K).p_value.min() > 0.05


def test_strength_is_the_factor_at_which_bonferroni_just_rejects():
    labels = table(4, 3)
    labels = replace(labels, observed=np.random.default_rng(1).poisson(4 * labels.expected + 1))
    labels.observed[:, np.arange(4), np.arange(4)] = 0
    strength = label_exchange(labels, Seed(0), redraws=1).strength
    for a in range(4):
        # Three families a depth: pairs, all others, those far from a.
        adjusted = 3 * len(CERTAIN) * 4 * naive_tails(labels, strength[a])[a]
        assert adjusted == pytest.approx(LEVEL, rel=1e-6)


def test_without_a_probe_or_without_labels_nothing_is_surprising():
    labels = np.arange(12) % 4
    exchange = exchange_of(np.zeros((12, 3), np.float32), labels, 4)
    assert (exchange.p_value == 1).all()
    assert (exchange.source == -1).all()
    assert (exchange.strength == 0).all()
    assert (exchange.excess == 0).all()
    assert (exchange.wrong_labels == 0).all()


def test_labels_that_the_probe_does_not_know_count_nowhere():
    log_probs = posteriors(1000, 3)
    labels = drawn_labels(np.exp(log_probs), np.random.default_rng(0))
    wider = np.column_stack((log_probs, np.full(1000, NO_LOG_PROB)))
    rare = labels.copy()
    rare[:9] = 3
    certain = counted(wider, rare, classes=np.arange(3))
    assert certain.observed[:, 3].sum() == certain.observed[:, :, 3].sum() == 0
    assert certain.expected[:, 3].sum() == 0
    without = counted(log_probs[9:], labels[9:])
    assert certain.observed.sum() == without.observed.sum()


def test_more_rows_than_the_recalibration_takes_change_little(monkeypatch):
    log_probs = posteriors(4000, 4)
    labels = drawn_labels(np.exp(log_probs), np.random.default_rng(0))
    all_rows = counted(log_probs, labels)
    monkeypatch.setattr(certain_module, "FIT_VALUES", 1000 * 4)
    some_rows = counted(log_probs, labels)
    assert np.array_equal(all_rows.observed, some_rows.observed)
    assert some_rows.expected.sum() == pytest.approx(all_rows.expected.sum(), rel=0.2)
    assert some_rows.expected.sum() != all_rows.expected.sum()
