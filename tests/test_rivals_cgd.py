"""CGD as published: its two axes by hand, what it unlearns, and when it stops."""

import copy

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import rankdata

from clipguard.compute.inference import classifier_logits
from clipguard.defenses import DEFENSES, Case
from clipguard.defenses.rivals import cgd
from clipguard.defenses.rivals.cgd import PublishedMethod
from clipguard.models.spec import weights_digest
from tiny_backdoor import backdoored


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return backdoored(tmp_path_factory.mktemp("backdoored"))


@pytest.fixture(scope="module")
def result(case):
    return DEFENSES["cgd"]().defend(case)


def test_the_guide_is_asked_without_its_scale_and_both_ranks_are_among_all_samples(case, result):
    labels = case.data.labels
    images = case.guide.clip.embed_images(case.data.images[:])
    cosines = images @ case.guide.class_embeddings(case.data.class_names).T
    losses = -log_softmax(cosines.astype(float), axis=1)[np.arange(len(labels)), labels]
    guide = rankdata(losses) / len(labels)
    np.testing.assert_allclose(result.entropy_map.guide_nll, losses, atol=1e-6)
    early = rankdata(result.entropy_map.early_nll) / len(labels)
    odd = (guide > 0.9) | (early < 0.1)
    np.testing.assert_array_equal(result.partition.flagged, odd)
    np.testing.assert_array_equal(result.partition.clean, (guide <= 0.8) & (early >= 0.2) & ~odd)


def test_it_changes_the_victim_and_the_same_seed_gives_the_same_model(case, result):
    again = PublishedMethod().defend(case).model
    assert weights_digest(result.model) == weights_digest(again) != weights_digest(case.victim)
    assert set(result.seconds) == {"embeddings", "early models", "unlearning"}


@pytest.mark.parametrize(("accuracies", "kept"), [([0.5, 0.9, 0.4, 0.9], 2), ([0.5, 0.45, 0.5], 3)])
def test_it_stops_where_accuracy_falls_by_more_than_its_error_and_keeps_the_weights_before(
    case, monkeypatch, accuracies, kept
):
    left = iter(accuracies)
    seen = []

    def accuracy(model, _):
        seen.append(copy.deepcopy(model))
        return next(left, 0.0)

    monkeypatch.setattr(cgd, "held_out_accuracy", accuracy)
    repaired = PublishedMethod(runs=1, published_samples=0).defend(case)
    assert repaired.notes["passes"] == kept
    assert len(seen) == kept + 1
    images = torch.as_tensor(case.data.images[:50])
    expected = classifier_logits(seen[kept - 1], images.numpy())
    np.testing.assert_array_equal(classifier_logits(repaired.model, images.numpy()), expected)


def test_the_nets_are_built_as_the_victim_unless_another_is_named(case):
    assert PublishedMethod()._nets(case).architecture == "shallow-8"
    named = PublishedMethod(architecture="preactresnet18-4", runs=2)._nets(case)
    assert (named.architecture, named.runs, named.epochs, named.lr) == ("preactresnet18-4", 2, 5, 3e-4)


def test_fewer_samples_than_published_have_more_passes(case, monkeypatch):
    monkeypatch.setattr(cgd, "held_out_accuracy", lambda *_: 0.5)
    published = (0, len(case.data), 3 * len(case.data))
    passes = [
        PublishedMethod(runs=1, published_samples=samples).defend(case).notes["passes"]
        for samples in published
    ]
    assert passes == [10, 10, 30]
