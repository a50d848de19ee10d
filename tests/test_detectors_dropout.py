"""PSBD: dropout after residual sums of any net, and predictions that hold under it."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clipguard.compute.inference import planes
from clipguard.defenses.rivals.dropout import Dropout, has_residual_sums
from clipguard.defenses.rivals.prediction_shift import (
    PredictionShift,
    dropped_out,
    probabilities,
    uncertainty,
)
from clipguard.errors import ClipguardError
from clipguard.lab.evaluation import auroc
from clipguard.models.spec import ModelSpec, Normalized, build
from clipguard.seeds import Seed
from tiny_case import tiny_case
from tiny_runs import poisoned_set

IMAGES = poisoned_set(40)[0].pixels


def net(architecture: str, size: int = 16) -> Normalized:
    return build(ModelSpec.sized(architecture=architecture, num_classes=3, input_size=(size, size)), Seed(1))


@pytest.mark.parametrize(
    ("architecture", "size", "sums"),
    [
        ("preactresnet18-2", 16, 8),
        ("resnet18", 32, 8),
        ("vit_tiny_patch16_224", 32, 24),
        ("mobilenetv3_small_050", 32, 7),
        ("shallow-4", 16, 0),
    ],
)
def test_residual_sums_are_counted_whatever_the_architecture(architecture, size, sums):
    model = net(architecture, size)
    images = torch.randint(256, (2, 3, size, size), dtype=torch.uint8, generator=Seed(0).torch())
    with torch.inference_mode(), Dropout(0.0, sums=True) as dropout:
        untouched = model(images)
    assert dropout.count == sums
    assert has_residual_sums(model, images) == (sums > 0)
    with torch.inference_mode():
        assert torch.equal(model(images), untouched)


def by_hand(network: nn.Module, x: torch.Tensor, rate: float) -> torch.Tensor:
    """Return the logits of a PreActResNet-18 with dropout written into its blocks."""
    x = network.stem(x)
    for block in network.stages:
        x = F.dropout(block(x), rate, training=True)
    return network.head(F.relu(network.norm(x)).mean((2, 3)))


def test_dropout_comes_after_each_residual_sum_and_nowhere_else():
    model = net("preactresnet18-2")
    found = dropped_out(model, IMAGES, 0.4, 2, Seed(7))
    for number in range(2):
        with torch.inference_mode(), Seed(7).child(number).torch_global():
            logits = by_hand(model.network, model.scaled(planes(IMAGES)), 0.4)
        np.testing.assert_allclose(found[number], logits.double().softmax(1), rtol=1e-5)
    assert not np.allclose(found[0], found[1])


def test_a_net_without_residual_sums_has_dropout_after_its_non_linear_functions():
    model = net("shallow-4")
    found = dropped_out(model, IMAGES, 0.4, 1, Seed(7))[0]
    with torch.inference_mode(), Seed(7).child(0).torch_global():
        x = model.scaled(planes(IMAGES))
        for layer in model.network.features:
            x = F.dropout(layer(x), 0.4, training=True) if isinstance(layer, nn.ReLU) else layer(x)
        logits = model.network.head(torch.cat((x.mean((2, 3)), x.amax((2, 3))), 1))
    np.testing.assert_allclose(found, logits.double().softmax(1), rtol=1e-5)


def test_a_net_with_no_place_for_dropout_is_refused():
    model = net("shallow-4")
    model.network = nn.Sequential(nn.Flatten(), nn.Linear(16 * 16 * 3, 3))
    with pytest.raises(ClipguardError, match="neither residual sums nor non-linear functions"):
        dropped_out(model, IMAGES, 0.4, 1, Seed(7))


def test_uncertainty_is_the_mean_fall_of_the_class_predicted_without_dropout():
    before = np.array([[0.7, 0.3], [0.1, 0.9]])
    after = np.array([[[0.5, 0.5], [0.2, 0.8]], [[0.1, 0.9], [0.0, 1.0]]])
    np.testing.assert_allclose(uncertainty(before, after), [0.4, 0.0])


def test_poison_holds_under_dropout_and_the_clean_slice_sets_rate_and_threshold(tmp_path):
    case, poisoned = tiny_case(tmp_path, "preactresnet18-4")
    found = PredictionShift(origin="given").defend(case)
    assert auroc(found.scores, poisoned) > 0.7
    assert found.scores.tolist() == PredictionShift(origin="given").defend(case).scores.tolist()
    assert found.flagged is not None
    assert found.flagged.tolist() == (-found.scores < found.notes["threshold"]).tolist()
    assert found.notes["shift_of_clean"] >= 8 / 9 * 2 / 3 > 0.5
    # Less of a shift takes less dropout.
    gentle = PredictionShift(origin="given", shift=0.2).defend(case)
    assert gentle.notes["dropout_rate"] < found.notes["dropout_rate"]
    every = PredictionShift(origin="given", percentile=100.0).defend(case)
    assert every.flagged.sum() > found.flagged.sum()
    assert probabilities(case.victim, IMAGES).sum(1) == pytest.approx(1)
