"""SCAn: covariances by expectation maximisation, and classes that are made of two groups."""

import importlib
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from clipguard.defenses.rivals.contamination import (
    ContaminationAnalyzer,
    Covariances,
    covariances,
    distances,
    maximised,
    two_groups,
    whitening_of,
)
from clipguard.lab.evaluation import auroc
from clipguard.seeds import Seed
from tiny_case import tiny_case

MODULE = importlib.import_module("clipguard.defenses.rivals.contamination")


@pytest.fixture(scope="module")
def poisoned_case(tmp_path_factory: pytest.TempPathFactory):
    return tiny_case(tmp_path_factory.mktemp("case"))


def round_by_the_whole_joint_normal(groups, between, within):
    """One round of expectation maximisation by the joint covariance of all samples of a class."""
    d, sums = len(between), [np.zeros_like(between), np.zeros_like(within)]
    for group in groups:
        m = len(group)
        joint = np.kron(np.ones((m, m)), between) + np.kron(np.eye(m), within)
        cross = np.kron(np.ones((1, m)), between)
        mean = cross @ np.linalg.inv(joint) @ group.ravel()
        spread = between - cross @ np.linalg.inv(joint) @ cross.T
        sums[0] += np.outer(mean, mean) + spread
        for sample in group:
            sums[1] += np.outer(sample - mean, sample - mean) + spread
    estimates = sums[0] / len(groups), sums[1] / sum(map(len, groups))
    return [value + 0.01 * np.trace(value) / d * np.eye(d) for value in estimates]


def test_a_round_is_that_of_the_joint_normal_of_all_samples_of_a_class():
    draw = np.random.default_rng(0)
    groups = [draw.standard_normal((m, 3)) + draw.standard_normal(3) for m in (4, 7, 2)]
    between, within = (x @ x.T + np.eye(3) for x in draw.standard_normal((2, 3, 3)))
    ours = maximised(groups, Covariances(between, within))
    for value, expected in zip(ours, round_by_the_whole_joint_normal(groups, between, within), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-9)


def test_the_covariances_of_drawn_features_are_estimated():
    draw = np.random.default_rng(1)
    scales = np.array([1.0, 2.0, 0.5])
    labels = np.repeat(np.arange(400), 4)
    means = draw.standard_normal((400, 3)) * [3.0, 1.0, 2.0]
    features = means[labels] + draw.standard_normal((len(labels), 3)) * scales
    found = covariances(features, labels)
    np.testing.assert_allclose(np.diag(found.within), scales**2, rtol=0.15)
    np.testing.assert_allclose(np.diag(found.between), [9.0, 1.0, 4.0], rtol=0.3)


def test_the_two_groups_are_the_likeliest_of_all_ways_to_cut_a_class():
    draw = np.random.default_rng(2)
    features = draw.standard_normal((9, 2))
    features[:3] += [4, 0]
    within = np.array([[2.0, 0.9], [0.9, 1.0]])
    inverse = np.linalg.inv(within)

    def misfit(some):
        away = some - some.mean(0)
        return np.einsum("ij,jk,ik->", away, inverse, away)

    cuts = (np.array(cut) for cut in product((False, True), repeat=9))
    best = min(misfit(features[cut]) + misfit(features[~cut]) for cut in cuts if 0 < cut.sum() < 9)
    groups = two_groups(features @ whitening_of(within), Seed(0))
    assert groups.statistic == pytest.approx((misfit(features) - best) / 9)
    # A class that is one point has nothing to gain.
    with pytest.warns(ConvergenceWarning):
        assert two_groups(np.zeros((9, 2)), Seed(0)).statistic == 0


def test_a_distance_is_counted_in_deviations_that_one_class_cannot_move():
    usual = [1.0, 2.0, 3.0, 4.0]
    found = distances([*usual, 100.0])
    assert found[2] == 0
    assert found[-1] == pytest.approx(97 / 1.4826)
    assert distances([*usual, 1e6])[:4] == found[:4]
    assert distances([]) == []


def test_it_flags_a_trigger_that_the_victim_has_learned(poisoned_case):
    case, poisoned = poisoned_case
    found = ContaminationAnalyzer(origin="given").defend(case)
    assert auroc(found.scores, poisoned) > 0.9
    assert found.flagged is not None
    assert found.flagged.tolist() == poisoned.tolist()
    assert found.notes == {"contaminated_classes": 1}
    assert found.scores.tolist() == ContaminationAnalyzer(origin="given").defend(case).scores.tolist()
    high = ContaminationAnalyzer(origin="given", threshold=1e300).defend(case)
    assert not high.flagged.any()


def test_the_attacks_group_is_the_one_that_no_clean_sample_is_like(poisoned_case, monkeypatch):
    case, _ = poisoned_case
    rows = np.flatnonzero(case.data.labels == 1)
    shifted = np.isin(np.arange(len(case.data)), rows[: len(rows) * 2 // 3])

    def drawn(victim, data):
        features = np.random.default_rng(3).standard_normal((len(data), 4))
        features[:, 0] += 5 * data.labels
        if len(data) == len(case.data):
            features[shifted, 1] += 12
        return features

    monkeypatch.setattr(MODULE, "features_of", drawn)
    detector = ContaminationAnalyzer(origin="given")
    # The larger group is the attack's, since the clean samples lie with the smaller one.
    assert detector.defend(case).flagged.tolist() == shifted.tolist()
    clean = case.clean.take(np.flatnonzero(case.clean.labels != 1))
    smaller = np.isin(np.arange(len(case.data)), rows) & ~shifted
    assert detector.defend(replace(case, clean=clean)).flagged.tolist() == smaller.tolist()
