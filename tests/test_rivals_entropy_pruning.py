"""EP: entropies against scipy's, what it reads of a net, what it prunes, and that the attack falls."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy, norm

from clipguard.compute.inference import classifier_logits, planes
from clipguard.defenses.rivals.entropy_pruning import (
    EntropyPruning,
    entropies,
    largest_inputs,
    outliers,
    prune,
)
from clipguard.errors import ClipguardError
from clipguard.models.spec import ModelSpec, build
from clipguard.seeds import Seed
from tiny_rivals import accuracy_and_attack_success, case_of, faint_set

IMAGES = faint_set(40)[0].pixels


def test_entropies_are_those_of_histograms_of_standardised_values():
    values = np.random.default_rng(0).gamma(2, 3, (500, 4)).astype(np.float32)
    standard = (values.astype(float) - values.astype(float).mean(0)) / values.astype(float).std(0)
    edges = standard.min() + 0.01 * np.arange(3000)
    expected = [entropy(np.histogram(channel, edges)[0]) for channel in standard.T]
    assert entropies(values) == pytest.approx(expected, rel=1e-3)


def test_many_normal_values_have_the_entropy_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(5, 3, (200_000, 1)).astype(np.float32)
    assert entropies(values) == pytest.approx([norm.entropy() - np.log(0.01)], abs=0.01)


def test_a_channel_that_never_varies_has_no_entropy_and_is_no_outlier():
    values = np.random.default_rng(0).normal(size=(100, 30)).astype(np.float32)
    values[:, 3] = 7
    values[:97, 8] = 0
    some = entropies(values)
    assert np.flatnonzero(np.isnan(some)).tolist() == [3]
    assert np.flatnonzero(outliers(some, 3.0)).tolist() == [8]
    assert not outliers(entropies(values[:, 3:4]), 3.0).any()


def test_what_is_read_is_the_largest_input_of_each_layer_over_positions():
    spec = ModelSpec.sized(architecture="shallow-4", num_classes=3, input_size=(16, 16))
    model = build(spec, Seed(0))
    with largest_inputs(model) as largest:
        classifier_logits(model, IMAGES, batch_size=15)
    assert [len(batches) for batches in largest.values()] == [3, 3, 3]
    with torch.no_grad():
        first = model.network.features[0](model.scaled(planes(IMAGES))).numpy()
    assert np.concatenate(next(iter(largest.values()))) == pytest.approx(
        np.array([[channel.max() for channel in image] for image in first]), abs=1e-5
    )
    assert not any(layer._forward_pre_hooks for layer in model.modules())


def test_the_attack_falls_with_some_channels_and_the_accuracy_stays(tmp_path):
    case = case_of(faint_set()[0], tmp_path)
    accuracy, attack_success = accuracy_and_attack_success(case.victim)
    assert attack_success > 0.9
    # Of 8 channels, none can lie 3 deviations below their mean.
    repaired = EntropyPruning(deviations=1.5).defend(case)
    after, attack_success_after = accuracy_and_attack_success(repaired.model)
    assert after > accuracy - 0.05
    assert attack_success_after < 0.2
    assert 0 < repaired.notes["pruned"] < 32
    scales = [layer.weight for layer in repaired.model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert sum(int((scale == 0).sum()) for scale in scales) == repaired.notes["pruned"]


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050"])
def test_nets_of_timm_are_pruned(name):
    model = build(ModelSpec.sized(architecture=name, num_classes=3, input_size=(32, 32)), Seed(0))
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    pruned = prune(model, images, 0.5)
    assert pruned > 0
    assert np.isfinite(classifier_logits(model, images)).all()


def test_a_net_without_batchnorm_is_refused():
    spec = ModelSpec.sized(architecture="vit_tiny_patch16_224", num_classes=3, input_size=(32, 32))
    with pytest.raises(ClipguardError, match="channels of BatchNorm layers, and the victim has none"):
        prune(build(spec, Seed(0)), np.zeros((2, 32, 32, 3), dtype=np.uint8), 3.0)
