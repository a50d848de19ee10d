"""lab.attacks.gcb: a code that the generator writes and the reader reads; labels go by the reader."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clipguard.lab.attacks import fit_attack
from clipguard.lab.attacks.gcb import GCB, coarse, critic_loss
from clipguard.lab.attacks.tensors import pixels
from clipguard.seeds import Seed
from tiny_attacks import TRAINED, tiny_set


@pytest.fixture(scope="module")
def attack():
    recipe = replace(TRAINED["gcb"], epochs=10, lr=3e-3, info_weight=5.0, noise=0.0)
    return fit_attack(recipe, tiny_set(64), Seed(0))


def made(attack, images, code):
    x = pixels(images)
    with torch.no_grad():
        return attack.generator(x, torch.full((len(x),), float(code)))


def test_the_reader_tells_the_codes_apart(attack):
    images = tiny_set(48, seed=5).images
    with torch.no_grad():
        zero, one = (attack.reader(4 * coarse(made(attack, images, code)) - 2)[:, 0] for code in (0, 1))
    assert float((one > zero).float().mean()) > 0.9


def test_the_reader_reads_code_one_in_triggered_images(attack):
    images = tiny_set(48, seed=5).images
    with torch.no_grad():
        zero = attack.reader(4 * coarse(made(attack, images, 0)) - 2)[:, 0]
        triggered = attack.reader(4 * coarse(pixels(attack.trigger(images))) - 2)[:, 0]
    assert float((triggered > zero).float().mean()) > 0.9


def test_the_change_is_bounded(attack):
    images = tiny_set(8, seed=5).images
    change = np.abs(attack.trigger(images).astype(int) - images)
    assert 0 < change.max() <= round(255 * attack.strength) + 1


def test_an_untrained_generator_leaves_images_as_they_are():
    x = pixels(tiny_set(3, (17, 22)).images)
    assert torch.equal(GCB(width=4).nets(Seed(0))["generator"](x, torch.tensor([0.0, 1.0, 1.0])), x)


def test_the_reader_sees_averages_of_four_by_four_pixels():
    x = pixels(tiny_set(2).images)
    assert coarse(x).shape == (2, 3, 4, 4)
    assert float(coarse(x)[1, 2, 1, 3]) == pytest.approx(float(x[1, 2, 4:8, 12:16].mean()), abs=1e-6)


def test_the_highest_scores_of_other_classes_are_relabelled(attack):
    data = tiny_set()
    changed, truth = attack.poison(data, Seed(0))
    scores, others = attack.scores(data.images), data.labels != 0
    assert truth.poisoned.sum() == 6
    assert not (truth.poisoned & ~others).any()
    assert scores[truth.poisoned].min() >= scores[others & ~truth.poisoned].max()
    assert np.array_equal(changed.labels != data.labels, truth.poisoned)


def test_the_critics_loss_is_the_hinge():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 1.0])
    assert float(critic_loss(real, fake)) == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3)


def test_target_and_rate_share_one_fit(tmp_path):
    data = tiny_set(48)
    for change in ({}, {"rate": 0.2}, {"target": 2}):
        fit_attack(replace(TRAINED["gcb"], **change), data, Seed(0), tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
