"""Detectors by labels: confident learning by cleanlab, and the scores of clipguard's own scan."""

import importlib
import sys
from dataclasses import replace

import numpy as np
import pytest

from clipguard.defenses.rivals.confident_learning import ConfidentLearning
from clipguard.defenses.rivals.own_scores import ClipguardScan, EarlyLoss, GuideLoss
from clipguard.detection import linear_probe
from clipguard.errors import ClipguardError
from clipguard.lab.evaluation import auroc
from clipguard.types import image_set
from tiny_case import tiny_case
from tiny_runs import CONFIG, samples_of

MODULE = importlib.import_module("clipguard.defenses.rivals.confident_learning")


@pytest.fixture(scope="module")
def poisoned_case(tmp_path_factory: pytest.TempPathFactory):
    return tiny_case(tmp_path_factory.mktemp("case"))


def seen_contents(images: np.ndarray, spread: float = 0.6) -> np.ndarray:
    """Return embeddings in which classes overlap: the bright third, as a guide would see it, with noise."""
    thirds = np.stack([images[:, :12, 5 * kind : 5 * kind + 5].mean((1, 2, 3)) for kind in range(3)], 1)
    noise = np.random.default_rng(1).standard_normal((len(images), 6))
    return np.concatenate([thirds / 40 + spread * noise[:, :3], noise[:, 3:]], 1).astype(np.float32)


def test_confident_learning_counts_what_is_confidently_of_another_class(poisoned_case, monkeypatch):
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_self_confidence_for_each_label
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    case, poisoned = poisoned_case
    embeddings, labels = seen_contents(case.data.pixels), case.data.labels
    folds = []

    def noted(*arguments):
        folds.append(linear_probe.fitted_probe(*arguments))
        return folds[-1]

    monkeypatch.setattr(MODULE, "embeddings_of", lambda guide, images: embeddings)
    monkeypatch.setattr(MODULE, "fitted_probe", noted)
    found = ConfidentLearning().defend(case)
    probabilities = np.zeros((len(labels), 3))
    for fold in range(5):
        inside = folds[0].fold == fold
        probe = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=np.full(3, 1 / 3))
        probe.fit(embeddings[~inside].astype(float), labels[~inside])
        probabilities[inside] = probe.predict_proba(embeddings[inside].astype(float))
    np.testing.assert_allclose(found.scores, 1 - get_self_confidence_for_each_label(labels, probabilities))
    assert found.flagged is not None
    # Wrong is what is confidently of another class: as much as those are on average that have its label.
    confident = np.array([probabilities[labels == label, label].mean() for label in range(3)])
    likeliest = probabilities.argmax(1)
    wrong = (likeliest != labels) & (probabilities.max(1) >= confident[likeliest])
    expected = np.sort(found.scores)[-wrong.sum()]
    assert found.flagged.tolist() == (found.scores >= expected).tolist()
    # By batches, cleanlab counts a few less.
    whole = find_label_issues(labels, probabilities, filter_by="low_self_confidence", n_jobs=1)
    assert found.flagged[~whole].sum() == 0
    assert 0.8 * whole.sum() <= found.flagged.sum() < len(labels) / 4
    assert auroc(found.scores, poisoned) > 0.6


def test_of_a_class_too_small_for_the_probe_it_has_no_opinion(poisoned_case, monkeypatch):
    case, _ = poisoned_case
    monkeypatch.setattr(MODULE, "embeddings_of", lambda guide, images: seen_contents(images))
    rows = np.concatenate([np.flatnonzero(case.data.labels < 2), np.flatnonzero(case.data.labels == 2)[:9]])
    some = case.data.take(np.sort(rows))
    found = ConfidentLearning().defend(replace(case, data=some))
    assert np.isnan(found.scores).tolist() == (some.labels == 2).tolist()
    assert not found.flagged[some.labels == 2].any()
    alone = image_set(some.pixels, np.zeros(len(some), np.int64), some.class_names)
    found = ConfidentLearning().defend(replace(case, data=alone))
    assert np.isnan(found.scores).all()
    assert not found.flagged.any()


def test_the_guide_is_asked_for_its_embeddings(poisoned_case):
    case, _ = poisoned_case
    few = case.data.pixels[:3]
    np.testing.assert_array_equal(MODULE.embeddings_of(case.guide, few), case.guide.clip.embed_images(few))


def test_without_cleanlab_the_message_says_what_to_install(poisoned_case, monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanlab.experimental.label_issues_batched", None)
    with pytest.raises(ClipguardError, match=r'pip install "clipguard\[quality\]"'):
        ConfidentLearning().defend(poisoned_case[0])


def test_the_scans_own_scores_are_the_columns_of_its_table(poisoned_case):
    case, poisoned = poisoned_case
    guide, early, whole = (kind(config=CONFIG).defend(case) for kind in (GuideLoss, EarlyLoss, ClipguardScan))
    (run,) = case.run_dir.iterdir()
    columns = samples_of(run)
    assert guide.scores.tolist() == columns["guide_nll"].tolist()
    assert early.scores.tolist() == (-columns["early_nll"]).tolist()
    assert whole.scores.tolist() == columns["poison_score"].tolist()
    assert whole.flagged is not None
    assert whole.flagged.tolist() == (np.array(columns["status"]) == "flagged").tolist()
    assert auroc(whole.scores, poisoned) > 0.9
    assert (set(guide.seconds), set(early.seconds)) == ({"embeddings"}, {"images", "early_model"})
    assert {"embeddings", "early_model", "trigger_detector"} <= set(whole.seconds)
