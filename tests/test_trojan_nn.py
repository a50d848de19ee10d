"""lab.attacks.trojan_nn: which units are driven, and a patch within its bound and its corner."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from clipguard.compute.inference import planes
from clipguard.errors import ClipguardError
from clipguard.lab.attacks import fit_attack
from clipguard.lab.attacks.surrogate import surrogate_of
from clipguard.lab.attacks.tensors import pixels
from clipguard.lab.attacks.trojan_nn import features_of, mask_of, strongest
from clipguard.models.features import head_of
from clipguard.models.spec import ModelSpec, build, logits_of
from clipguard.seeds import Seed
from clipguard.triggers.patterns import noise_pattern
from tiny_attacks import TRAINED, coloured_set

RECIPE = replace(TRAINED["trojan-nn"], epochs=20, lr=0.05, steps=60)


@pytest.fixture(scope="module")
def attack():
    return fit_attack(RECIPE, coloured_set(), Seed(3))


def net(architecture):
    return build(ModelSpec.sized(architecture=architecture, num_classes=3, input_size=(16, 16)), Seed(0))


def linear(*rows):
    head = nn.Linear(len(rows[0]), len(rows))
    head.weight.data = torch.tensor(rows)
    return head


def test_the_strongest_units_of_the_target_come_first_and_then_those_of_other_classes():
    head = linear([1.0, 3.0, 0.5, -9.0], [0.0, -3.0, 0.1, 1.0])
    assert strongest(head, 0, 2).tolist() == [1, 0]
    assert strongest(head, 0, 4).tolist() == [1, 0, 2, 3]
    assert strongest(head, 1, 2).tolist() == [3, 1]
    assert sorted(strongest(head, 1, 9).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("architecture", ["shallow-4", "preactresnet18-4"])
def test_features_are_what_the_last_layer_makes_logits_of(architecture):
    model = net(architecture).eval()
    x = pixels(coloured_set(4).images).requires_grad_()
    head = head_of(model, planes(coloured_set(1).images))
    features = features_of(model, head, x)
    assert torch.allclose(head(features), logits_of(model, x), atol=1e-5)
    (slope,) = torch.autograd.grad(features.sum(), [x])
    assert bool(slope.any())
    assert not head._forward_pre_hooks


class Pooled(nn.Module):
    """A classifier without any linear layer."""

    def __init__(self, num_classes):
        super().__init__()
        self.last = nn.Conv2d(3, num_classes, 3)

    def forward(self, x):
        return self.last(x).mean((2, 3))


def test_a_surrogate_that_does_not_end_in_a_linear_layer_is_refused():
    recipe = replace(RECIPE, epochs=1, architecture="test_trojan_nn:Pooled")
    with pytest.raises(ClipguardError, match="does not end in a linear layer: choose another architecture"):
        fit_attack(recipe, coloured_set(), Seed(0))


def test_the_patch_drives_its_units_further_than_images_and_the_noise_it_began_as(attack):
    images = coloured_set(30, seed=9).images
    noise = replace(attack, pattern=noise_pattern(16, 16, Seed(3).child("patch")))
    # As the attack trained its own: of the same seed.
    model = surrogate_of(RECIPE, coloured_set(), Seed(3), lambda *step: None)
    head = head_of(model, planes(images[:1]))
    units = strongest(head, 0, 2)
    with torch.no_grad():
        clean, initial, driven = (
            features_of(model, head, pixels(some))[:, units].mean(0)
            for some in (images, noise.trigger(images), attack.trigger(images))
        )
    assert bool((driven > clean + 0.5).all())
    assert bool((driven > initial + 0.5).all())


def test_the_patch_stays_within_three_tenths_of_the_noise_that_it_began_as(attack):
    initial = noise_pattern(16, 16, Seed(3).child("patch")).astype(int)
    change = np.abs(attack.pattern - initial)
    # 0.3 of 255 is 76.5.
    assert 70 < change.max() <= 77
    assert not change[~mask_of(16, 16)].any()


@pytest.mark.parametrize(("size", "side"), [((16, 16), 4), ((32, 32), 8), ((20, 40), 5)])
def test_the_patch_stands_in_the_bottom_right_corner(size, side):
    expected = np.zeros(size, dtype=bool)
    expected[-side:, -side:] = True
    assert np.array_equal(mask_of(*size), expected)


def test_images_in_training_and_test_carry_the_patch_and_are_else_as_they_were(attack):
    data, mask = coloured_set(seed=5), mask_of(16, 16)
    triggered = attack.trigger(data.images)
    assert (triggered[:, mask] == attack.pattern[mask]).all()
    assert np.array_equal(triggered[:, ~mask], data.images[:, ~mask])
    changed, truth = attack.poison(data, Seed(0))
    assert np.array_equal(changed.images[truth.poisoned], triggered[truth.poisoned])
