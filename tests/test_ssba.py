"""lab.attacks.ssba: a bounded residual that differs by image, and a secret that can be read again."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clipguard.lab.attacks import fit_attack
from clipguard.lab.attacks.ssba import SSBA, shifted, train_decoder
from clipguard.lab.attacks.tensors import pixels
from clipguard.seeds import Seed
from tiny_attacks import TRAINED, tiny_set

RECIPE = replace(TRAINED["ssba"], bits=4, epochs=15, secret_epochs=15, width=8, lr=5e-3, shift=0.0)


@pytest.fixture(scope="module")
def attack():
    return fit_attack(RECIPE, tiny_set(64), Seed(0))


def test_the_secret_is_read_from_images_that_carry_it(attack):
    encoder = RECIPE.nets(Seed(0))["encoder"]
    decoder = train_decoder(RECIPE, encoder, tiny_set(64), Seed(0), lambda *step: None)
    assert torch.equal(encoder.spread.weight, attack.encoder.spread.weight)
    with torch.no_grad():
        bits = decoder.eval()(pixels(attack.trigger(tiny_set(32, seed=5).images))) > 0
    assert (bits == (attack.secret() > 0.5)).float().mean() > 0.95


def test_the_residual_is_bounded_and_differs_by_image(attack):
    images = tiny_set(8, seed=5).images
    residual = attack.trigger(images).astype(int) - images
    assert np.abs(residual).max() <= round(255 * attack.strength) + 1
    assert len({part.tobytes() for part in residual}) == 8


def test_another_secret_is_another_trigger_of_the_same_fit(attack, tmp_path):
    data, recipe = tiny_set(32), TRAINED["ssba"]
    one = fit_attack(recipe, data, Seed(0), tmp_path)
    other = fit_attack(replace(recipe, secret_seed=1), data, Seed(0), tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert not torch.equal(one.secret(), other.secret())
    assert torch.equal(one.encoder.spread.weight, other.encoder.spread.weight)
    x = pixels(data.images)
    made = [a.encoder(x, a.secret().expand(len(x), -1)) for a in (one, other)]
    assert not torch.equal(*made)


def test_the_secret_has_twenty_bits_and_both_kinds():
    secret = SSBA().secret()
    assert len(secret) == 20
    assert set(secret.tolist()) == {0.0, 1.0}
    assert torch.equal(secret, SSBA(rate=0.5).secret())


def test_poison_is_drawn_from_all_classes_and_carries_the_trigger(attack):
    data = tiny_set(90)
    changed, truth = attack.poison(data, Seed(0))
    rows = np.flatnonzero(truth.poisoned)
    assert set(data.labels[rows]) == {0, 1, 2}
    assert np.abs(changed.images[rows].astype(int) - attack.trigger(data.images)[rows]).max() <= 1


@pytest.mark.parametrize("size", [(16, 16), (17, 22)])
def test_between_the_nets_images_are_shifted_by_an_eighth_at_most_and_mirrored(size):
    x = pixels(tiny_set(3, size).images)
    h, w = size
    pad = round(0.125 * max(size))
    padded = torch.nn.functional.pad(x, (pad,) * 4)
    windows = [padded[:, :, i : i + h, j : j + w] for i in range(2 * pad + 1) for j in range(2 * pad + 1)]
    generator = Seed(0).torch()
    mirrored = 0
    for _ in range(30):
        moved = shifted(x, 0.125, generator)
        plain = any(torch.equal(moved, window) for window in windows)
        assert plain or any(torch.equal(moved, window.flip(3)) for window in windows)
        mirrored += not plain
    assert 5 < mirrored < 25
    assert shifted(x, 0.0, generator) is x
