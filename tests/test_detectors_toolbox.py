"""Spectral signatures and activation clustering by the toolbox, held against plain numpy."""

import importlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from clipguard.defenses.rivals import toolbox as toolbox_module
from clipguard.defenses.rivals.activation_clustering import ActivationClustering, two_clusters
from clipguard.defenses.rivals.spectral_signatures import SpectralSignatures, spectral_scores
from clipguard.defenses.rivals.toolbox import toolbox
from clipguard.errors import ClipguardError
from clipguard.lab.evaluation import auroc
from clipguard.seeds import Seed
from tiny_case import tiny_case


@pytest.fixture(scope="module")
def poisoned_case(tmp_path_factory: pytest.TempPathFactory):
    return tiny_case(tmp_path_factory.mktemp("case"))


def features_with_outliers(n: int, outliers: int, d: int = 24) -> np.ndarray:
    draw = np.random.default_rng(4)
    features = 5 + draw.standard_normal((n, d))
    features[:outliers, 3] += 9
    return features


def test_spectral_scores_are_lengths_along_the_main_axis_of_the_covariance():
    features = features_with_outliers(80, 20)
    centred = features - features.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    np.testing.assert_allclose(spectral_scores(features), np.abs(centred @ axes[:, -1]), rtol=1e-9)
    # They do not move with all features, as those of features that are not centred do.
    np.testing.assert_allclose(spectral_scores(features + 100), spectral_scores(features), rtol=1e-6)


class Activations:
    """What the toolbox's own detector asks of a classifier."""

    layer_names, nb_classes = ("features",), 3

    def __init__(self, centred: np.ndarray) -> None:
        self.centred = centred

    def get_activations(self, rows: np.ndarray, layer: int, batch_size: int) -> np.ndarray:
        return self.centred[rows]


def test_spectral_signatures_flag_what_the_toolboxs_own_detector_flags(poisoned_case, monkeypatch):
    case, _ = poisoned_case
    module = importlib.import_module("clipguard.defenses.rivals.spectral_signatures")
    features = np.random.default_rng(0).gamma(2, size=(len(case.data), 12))
    monkeypatch.setattr(module, "features_of", lambda victim, data: features)
    found = SpectralSignatures(expected_share=0.1).defend(case)
    centred, labels = features.copy(), case.data.labels
    for label in range(3):
        centred[labels == label] -= features[labels == label].mean(0)
    detector = toolbox("defences.detector.poison.spectral_signature_defense").SpectralSignatureDefense(
        Activations(centred), np.arange(len(labels)), labels, expected_pp_poison=0.1
    )
    _, clean = detector.detect_poison()
    assert found.flagged is not None
    assert found.flagged.tolist() == (np.array(clean) == 0).tolist()
    assert 0 < found.flagged.sum() < len(labels) / 4


def naive_silhouettes(points: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    out = []
    for i, point in enumerate(points):
        lengths = np.sqrt(((points - point) ** 2).sum(1))
        own = lengths[(clusters == clusters[i]) & (np.arange(len(points)) != i)].mean()
        other = lengths[clusters != clusters[i]].mean()
        out.append((other - own) / max(own, other))
    return np.array(out)


@pytest.mark.parametrize(("outliers", "flags"), [(20, True), (38, False), (0, False)])
def test_a_class_is_poisoned_if_its_smaller_cluster_is_small_and_apart(
    poisoned_case, monkeypatch, outliers, flags
):
    case, _ = poisoned_case
    module = importlib.import_module("clipguard.defenses.rivals.activation_clustering")
    features, rows = np.zeros((len(case.data), 24)), np.flatnonzero(case.data.labels == 1)
    features[rows] = features_with_outliers(len(rows), outliers)
    monkeypatch.setattr(module, "features_of", lambda victim, data: features)
    found = ActivationClustering().defend(case)
    expected = np.isin(np.arange(len(features)), rows[:outliers]) & flags
    assert found.flagged is not None
    assert found.flagged.tolist() == expected.tolist()
    # Of classes whose features are all alike it has no opinion.
    assert np.isnan(np.delete(found.scores, rows)).all()
    clusters, reduced = two_clusters(features[rows], "PCA", Seed(case.seed).child("activation clustering", 1))
    signs = np.where(clusters == np.bincount(clusters).argmin(), 1, -1)
    np.testing.assert_allclose(found.scores[rows], signs * naive_silhouettes(reduced, clusters), atol=1e-9)


def global_state() -> tuple[object, ...]:
    _, words, place, *_ = np.random.get_state()  # noqa: NPY002  # Of the user's process.
    return words.tolist(), place


@pytest.mark.parametrize("detector", [SpectralSignatures(), ActivationClustering()])
def test_they_see_a_trigger_that_the_victim_has_learned_and_say_the_same_twice(poisoned_case, detector):
    case, poisoned = poisoned_case
    before = global_state()
    first = detector.defend(case)
    assert global_state() == before
    with Seed(5).numpy_global():
        second = detector.defend(case)
    assert first.scores.tolist() == second.scores.tolist()
    assert auroc(first.scores, poisoned) > 0.8
    assert "features" in first.seconds


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "art", None)
    monkeypatch.delitem(sys.modules, "art.defences", raising=False)
    with pytest.raises(ClipguardError, match=r'pip install "clipguard\[rivals\]"'):
        toolbox("defences")


def test_importing_the_package_writes_nothing_into_the_home_folder(monkeypatch, tmp_path):
    homes: list[str] = []

    def imported(name: str):
        homes.append(os.environ["HOME"])

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "art", raising=False)
    monkeypatch.setattr(toolbox_module.importlib, "import_module", imported)
    toolbox("defences")
    temporary, own = homes
    assert (temporary != str(tmp_path), own) == (True, str(tmp_path))
    assert not Path(temporary).exists()
