"""lab.attacks.input_aware: masks and patterns by the paper's formulas, cover with another's trigger."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from clipguard.errors import ClipguardError
from clipguard.lab.attacks import fit_attack
from clipguard.lab.attacks.input_aware import (
    InputAware,
    mask_of,
    pattern_of,
    put_on,
    sameness,
)
from clipguard.lab.attacks.tensors import pixels
from clipguard.lab.attacks.unet import UNet
from clipguard.seeds import Seed
from tiny_attacks import TRAINED, tiny_set

RECIPE = TRAINED["input-aware"]


@pytest.fixture(scope="module")
def attack():
    return fit_attack(RECIPE, tiny_set(), Seed(0))


def test_masks_and_patterns_are_squashed_as_published():
    net = RECIPE.untrained(1, Seed(0))
    x = pixels(tiny_set(2).images)
    raw = net((x - 0.5) / 0.25).flatten().tolist()
    for value, mask in zip(raw, mask_of(net, x).flatten().tolist(), strict=True):
        between = (math.tanh(value) + 1) / 2
        assert mask == pytest.approx(math.tanh(20 * between - 10) / 2 + 0.5, abs=1e-5)
    net = RECIPE.untrained(3, Seed(0))
    raw = net((x - 0.5) / 0.25).flatten().tolist()
    for value, pattern in zip(raw, pattern_of(net, x).flatten().tolist(), strict=True):
        assert pattern == pytest.approx((math.tanh(value) + 1) / 2, abs=1e-5)


def test_a_pattern_replaces_the_image_where_the_mask_is_one_and_nothing_where_it_is_zero():
    x, pattern = torch.full((1, 3, 4, 4), 0.25), torch.full((1, 3, 4, 4), 0.75)
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 0], mask[..., 1] = 1.0, 0.5
    row = put_on(x, pattern, mask)[0, 0, 0]
    assert row.tolist() == [0.75, 0.5, 0.25, 0.25]


def test_sameness_is_the_mean_ratio_of_distances():
    draw = np.random.default_rng(0)
    one, other, f, g = (torch.from_numpy(draw.random((5, 3, 4, 4)).astype(np.float32)) for _ in range(4))
    ratios = [
        math.sqrt(float(((a - b) / 0.25).square().mean())) / math.sqrt(float((c - d).square().mean()))
        for a, b, c, d in zip(one, other, f, g, strict=True)
    ]
    assert float(sameness(one, other, f, g)) == pytest.approx(np.mean(ratios), rel=1e-4)


def test_sameness_of_equal_images_has_a_finite_slope():
    x = torch.full((2, 3, 4, 4), 0.5, requires_grad=True)
    sameness(x, x.detach(), x, x.detach()).backward()
    assert bool(torch.isfinite(x.grad).all())


def test_cover_carries_another_images_trigger_and_its_own_label(attack):
    data = tiny_set()
    changed, truth = attack.poison(data, Seed(0))
    rows = np.flatnonzero(truth.cover)
    assert np.array_equal(changed.labels[rows], data.labels[rows])
    for row in rows:
        same = np.repeat(data.images[row][None], len(data), axis=0)
        possible = attack.crossed(same, data.images)
        # Sums in another order may round to the next grey level.
        far = np.abs(possible.astype(int) - changed.images[row]).max((1, 2, 3))
        assert far.min() <= 1
        assert far[row] > 1


def test_poison_carries_its_own_trigger_and_comes_from_all_classes(attack):
    data = tiny_set()
    changed, truth = attack.poison(data, Seed(2))
    rows = np.flatnonzero(truth.poisoned)
    assert len(set(data.labels[rows])) > 1
    assert np.abs(changed.images[rows].astype(int) - attack.trigger(data.images)[rows]).max() <= 1


def test_an_image_crossed_with_itself_is_its_own_trigger(attack):
    images = tiny_set(5).images
    own, crossed = attack.trigger(images).astype(int), attack.crossed(images, images)
    assert np.abs(own - crossed).max() <= 1


def test_the_published_values_are_the_defaults():
    recipe = InputAware()
    assert (recipe.density, recipe.mask_weight, recipe.diversity_weight) == (0.032, 100.0, 1.0)
    assert recipe.cover_ratio == 1.0


def test_one_image_alone_is_refused():
    with pytest.raises(ClipguardError, match="at least two images"):
        fit_attack(replace(RECIPE, rate=0.9), tiny_set(1), Seed(0))


def test_nets_of_one_seed_are_equal():
    one, same, other = (RECIPE.untrained(3, Seed(s)) for s in (0, 0, 1))
    assert isinstance(one, UNet)
    assert torch.equal(one.enter[0].weight, same.enter[0].weight)
    assert not torch.equal(one.enter[0].weight, other.enter[0].weight)
