"""lab.attacks.greyscale and triggers that vanish: what attacks make of images without colour."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipguard.errors import ClipguardError
from clipguard.lab.attacks import attack_named, fit_attack, parts_of, triggered
from clipguard.lab.attacks.greyscale import OnGrey, greyed, is_grey
from clipguard.seeds import Seed
from clipguard.types import image_set

NAMES = ("a", "b", "c")


def a_set(n=60, size=(16, 20), colours=1, seed=0):
    """Return noise with one channel three times over, or with three."""
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (n, *size, colours), dtype=np.uint8)
    return image_set(np.broadcast_to(images, (n, *size, 3)).copy(), np.arange(n) % 3, NAMES)


@pytest.mark.parametrize("name", ["badnets", "blended", "wanet", "bpp", "sig", "adap-blend", "adap-patch"])
def test_on_grey_data_the_poison_and_the_triggered_images_are_grey_and_the_rest_untouched(name):
    data = a_set()
    attack = fit_attack(attack_named(name, rate=0.2), data, Seed(0))
    changed, truth = attack.poison(data, Seed(1))
    touched = truth.poisoned | truth.cover
    assert is_grey(changed.images)
    assert np.array_equal(changed.images[~touched], data.images[~touched])
    assert (changed.images[truth.poisoned] != data.images[truth.poisoned]).any()
    moved = triggered(attack, data.images)
    assert is_grey(moved)
    assert (attack.rate, attack.target) == (0.2, 0)
    assert np.array_equal(attack.target_labels(data.labels, 3), np.zeros(60, int))


def test_coloured_data_keep_the_attack_as_it_is():
    data = a_set(colours=3)
    attack = attack_named("blended", rate=0.2)
    assert fit_attack(attack, data, Seed(0)) is attack
    assert not is_grey(attack.poison(data, Seed(1))[0].images)
    mixed = replace(data, images=np.concatenate([a_set(59).images, data.images[:1]]))
    assert not is_grey(mixed.images)


def test_several_attackers_on_grey_data_are_measured_one_by_one_on_grey_images():
    data = a_set()
    both = fit_attack(attack_named("together:blended+badnets", rate=0.1), data, Seed(0))
    assert is_grey(both.poison(data, Seed(0))[0].images)
    assert both.trigger(data.images) is None
    parts = parts_of(both)
    assert [type(part) for part in parts] == [OnGrey, OnGrey]
    assert [part.target for part in parts] == [0, 1]
    assert all(is_grey(triggered(part, data.images)) for part in parts)


@given(st.integers(0, 2**32))
def test_grey_images_are_what_they_were_and_colours_become_their_luma(seed):
    images = a_set(3, (4, 5), seed=seed).images
    assert np.array_equal(greyed(images), images)
    coloured = a_set(3, (4, 5), 3, seed).images
    r, g, b = np.moveaxis(coloured.astype(float), -1, 0)
    assert (np.abs(greyed(coloured)[..., 0] - (0.299 * r + 0.587 * g + 0.114 * b)) <= 0.5 + 1e-9).all()


@pytest.mark.parametrize("width", [6, 12])
def test_a_trigger_that_changes_nothing_is_refused(width):
    # Six periods over so few columns are zero at every one of them.
    data = a_set(size=(16, width), colours=3)
    with pytest.raises(ClipguardError, match=f"the trigger changes no pixel of images of 16 x {width}"):
        triggered(attack_named("sig", rate=0.1), data.images)


def test_a_control_has_no_trigger_to_vanish():
    assert triggered(attack_named("flips"), a_set().images) is None
