"""lab.attacks.label_consistent: PGD within its bound, checkers in four corners, labels as they were."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from clipguard.lab.attacks import fit_attack
from clipguard.lab.attacks.label_consistent import paste_corners, pgd, robust_loss
from clipguard.lab.attacks.tensors import pixels
from clipguard.models.spec import ModelSpec, build, logits_of
from clipguard.seeds import Seed
from tiny_attacks import TRAINED, tiny_set

RECIPE = TRAINED["lc"]


def net():
    spec = ModelSpec.sized(architecture="shallow-4", num_classes=3, input_size=(16, 16))
    return build(spec, Seed(0))


@pytest.fixture(scope="module")
def attack():
    return fit_attack(replace(RECIPE, steps=8), tiny_set(), Seed(0))


def test_pgd_raises_the_loss_within_its_bound():
    data, model = tiny_set(12), net()
    x, labels = pixels(data.images), torch.from_numpy(data.labels)
    moved = pgd(model, x, labels, x, bound=8 / 255, step=1.5 / 255, steps=10)
    assert float((moved - x).abs().max()) <= 8 / 255 + 1e-6
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1
    before, after = (F.cross_entropy(logits_of(model, images), labels).item() for images in (x, moved))
    assert after > before


def test_one_step_of_pgd_follows_the_slopes_sign():
    data, model = tiny_set(4), net()
    x, labels = pixels(data.images), torch.from_numpy(data.labels)
    leaf = x.clone().requires_grad_()
    F.cross_entropy(logits_of(model, leaf), labels, reduction="sum").backward()
    moved = pgd(model, x, labels, x, bound=8 / 255, step=1.5 / 255, steps=1)
    assert torch.allclose(moved, x + 1.5 / 255 * leaf.grad.sign(), atol=1e-6)


def test_pgd_never_leaves_what_a_pixel_can_be():
    images = np.zeros((2, 16, 16, 3), dtype=np.uint8)
    images[1] = 255
    x = pixels(images)
    moved = pgd(net(), x, torch.tensor([0, 1]), x, bound=0.1, step=0.05, steps=3)
    assert (float(moved.min()), float(moved.max())) == (0.0, 1.0)


def test_the_robust_loss_is_between_the_clean_and_the_attacked_one():
    data, model = tiny_set(12), net()
    images, rows = torch.from_numpy(data.images).permute(0, 3, 1, 2), torch.arange(12)
    clean = F.cross_entropy(model(images), torch.from_numpy(data.labels))
    mixed = robust_loss(model, data.labels, 0.2, Seed(0).torch())(model(images), rows, images)
    assert bool(mixed > clean)


def test_hard_images_of_the_target_class_lie_within_eight_grey_levels(attack):
    data = tiny_set()
    of_target = np.flatnonzero(data.labels == 0)
    change = np.abs(attack.hard.astype(int) - data.images[of_target])
    assert change.max() <= 8
    assert (change.max((1, 2, 3)) > 0).all()


def test_poison_is_a_hard_image_with_checkers_and_a_test_image_has_checkers_only(attack):
    data = tiny_set()
    changed, truth = attack.poison(data, Seed(0))
    rows = np.flatnonzero(truth.poisoned)
    assert (data.labels[rows] == 0).all()
    hard = attack.hard[np.searchsorted(np.flatnonzero(data.labels == 0), rows)]
    assert np.array_equal(changed.images[rows], paste_corners(hard))
    assert np.array_equal(attack.trigger(data.images), paste_corners(data.images))


@pytest.mark.parametrize(("size", "side"), [((16, 16), 3), ((18, 23), 3), ((32, 32), 3), ((64, 70), 6)])
def test_a_checker_stands_in_each_corner_and_mirroring_keeps_it(size, side):
    images = tiny_set(3, size).images
    changed = paste_corners(images)
    assert set(np.unique(changed[:, :side, :side])) == {0, 255}
    inside = np.ones(size, dtype=bool)
    for rows in (slice(None, side), slice(-side, None)):
        for columns in (slice(None, side), slice(-side, None)):
            inside[rows, columns] = False
            assert (changed[:, rows, columns] == changed[:1, rows, columns, :1]).all()
    assert np.array_equal(changed[:, inside], images[:, inside])
    assert np.array_equal(paste_corners(images[:, :, ::-1]), changed[:, :, ::-1])
    assert np.array_equal(paste_corners(images[:, ::-1]), changed[:, ::-1])
