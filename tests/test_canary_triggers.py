"""triggers.canaries: known triggers, the same ones at every size, drawn anew by every seed."""

import numpy as np
import pytest

from clipguard.seeds import Seed
from clipguard.triggers.canaries import ALPHA, AMPLITUDE, FAMILIES, PERIODS, canary_trigger

GREY = np.full((1, 32, 32, 3), 128, np.uint8)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_draws_one_trigger_and_another_seed_another_one(family):
    images = [canary_trigger(family, 32, 32, Seed(seed)).apply(GREY) for seed in (0, 0, 1)]
    assert np.array_equal(images[0], images[1])
    assert (images[0] != images[2]).any()


@pytest.mark.parametrize("seed", range(20))
def test_a_patch_is_three_by_three_pixels_and_lies_within_the_image(seed):
    changed = (canary_trigger("patch", 32, 48, Seed(seed)).scale == 0).all(2)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    assert len(rows) == len(columns) == 3
    assert changed.sum() == 9
    assert np.ptp(rows) == np.ptp(columns) == 2


def test_patches_lie_in_many_places():
    changed = [canary_trigger("patch", 32, 32, Seed(seed)).scale[..., 0] == 0 for seed in range(60)]
    tops, lefts = (np.array([np.flatnonzero(one.any(axis))[0] for one in changed]) for axis in (1, 0))
    for places in (tops, lefts):
        assert places.min() < 5
        assert places.max() > 24


def test_a_blend_is_a_fifth_pattern():
    draw = np.random.default_rng(0)
    dark, light = (canary_trigger("blend", 32, 32, Seed(0)).apply(np.full_like(GREY, x)) for x in (0, 255))
    assert dark.max() <= round(255 * ALPHA)
    assert np.abs(light.astype(int) - dark - round(255 * (1 - ALPHA))).max() <= 1
    mixed = canary_trigger("blend", 32, 32, Seed(0)).apply(draw.integers(0, 256, GREY.shape, dtype=np.uint8))
    assert mixed.dtype == np.uint8


@pytest.mark.parametrize("family", ["sinusoid", "clean-label"])
@pytest.mark.parametrize("seed", range(5))
def test_a_wave_has_its_amplitude_and_as_many_periods_as_it_should(family, seed):
    shift = canary_trigger(family, 64, 64, Seed(seed)).shift
    assert 0.95 * AMPLITUDE < np.abs(shift).max() <= AMPLITUDE
    # The strongest frequency of the whole picture, by an independent transform.
    spectrum = np.abs(np.fft.fft2(shift[..., 0]))
    y, x = (np.fft.fftfreq(64) * 64)[np.array(np.unravel_index(spectrum.argmax(), spectrum.shape))]
    assert PERIODS[0] - 1 < np.hypot(x, y) < PERIODS[1] + 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_larger_image_gets_the_same_trigger_enlarged(family):
    small, large = (
        canary_trigger(family, side, side, Seed(4)).apply(np.full((1, side, side, 3), 128, np.uint8))[0]
        for side in (64, 128)
    )
    halved = large.astype(float).reshape(64, 2, 64, 2, 3).mean((1, 3))
    # Places are rounded to pixels; a wave is not, but its pixels are points of it.
    assert (np.abs(halved - small) < 0.2 * AMPLITUDE).mean() > 0.97
