"""lab.attacks.narcissus: bounded noise on few images of the target class, threefold in test."""

from dataclasses import replace

import numpy as np
import pytest

from clipguard.lab.attacks import fit_attack
from clipguard.lab.attacks.narcissus import Narcissus
from clipguard.seeds import Seed
from clipguard.triggers.patterns import add_pattern
from tiny_attacks import TRAINED, coloured_set

RECIPE = replace(TRAINED["narcissus"], epochs=10, lr=0.05, steps=40)


@pytest.fixture(scope="module")
def attack():
    return fit_attack(RECIPE, coloured_set(), Seed(3))


def test_the_default_rate_is_25_of_50000_samples():
    assert round(Narcissus().rate * 50_000) == 25


def test_the_noise_reaches_its_bound_and_not_beyond(attack):
    assert 15.9 < np.abs(attack.pattern).max() <= 16.001
    weak = fit_attack(replace(RECIPE, bound=4 / 255), coloured_set(), Seed(3))
    assert 3.9 < np.abs(weak.pattern).max() <= 4.001


def test_poison_carries_the_noise_once_and_a_test_image_three_times(attack):
    data = coloured_set(seed=5)
    changed, truth = attack.poison(data, Seed(0))
    assert (data.labels[truth.poisoned] == 0).all()
    poison = changed.images[truth.poisoned].astype(int) - data.images[truth.poisoned]
    assert np.abs(poison).max() == 16
    assert np.array_equal(poison, np.broadcast_to(np.rint(attack.pattern), poison.shape))
    assert np.array_equal(attack.trigger(data.images), add_pattern(data.images, 3 * attack.pattern))
    assert np.abs(attack.trigger(data.images).astype(int) - data.images).max() == 48


def test_how_strong_test_images_are_does_not_need_another_fit(attack, tmp_path):
    once = fit_attack(replace(RECIPE, magnified=1.0), coloured_set(), Seed(3), tmp_path)
    fit_attack(RECIPE, coloured_set(), Seed(3), tmp_path, lambda *_: pytest.fail("trained again"))
    data = coloured_set(seed=5)
    changed, truth = once.poison(data, Seed(0))
    assert np.array_equal(once.trigger(data.images)[truth.poisoned], changed.images[truth.poisoned])
    assert np.array_equal(once.pattern, attack.pattern)


def test_the_noise_is_sought_on_images_of_the_target_class_only(monkeypatch):
    searched = []

    def no_batch(attack, images, *rest):
        searched.append(images)
        return iter(())

    monkeypatch.setattr("clipguard.lab.attacks.surrogate.search_batches", no_batch)
    data = coloured_set()
    fit_attack(replace(RECIPE, target=1), data, Seed(0))
    assert np.array_equal(searched[0], data.images[data.labels == 1])
