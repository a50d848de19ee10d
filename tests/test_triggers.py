"""clipguard.triggers: patterns on images of any size, against pixel-by-pixel oracles."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipguard.seeds import Seed
from clipguard.triggers import add_sinusoid, blend, noise_pattern, stamp_patch
from reference import images as oracle

sides = st.integers(1, 12)
draws = st.integers(0, 2**32)


def pictures(h, w, n=2, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, h, w, 3), dtype=np.uint8)


@given(sides, sides, draws, st.integers(0, 14), st.integers(0, 255))
def test_a_patch_overwrites_the_bottom_right_corner_and_nothing_else(h, w, seed, size, value):
    images = pictures(h, w, seed=seed)
    stamped = stamp_patch(images, size, value)
    for row in range(h):
        for column in range(w):
            inside = row >= h - size and column >= w - size
            expected = np.full((2, 3), value) if inside else images[:, row, column]
            assert np.array_equal(stamped[:, row, column], expected)


@given(sides, sides, draws, st.floats(0, 80), st.sampled_from([1.0, 2.5, 6.0]))
def test_the_sinusoid_is_that_of_the_formula(h, w, seed, amplitude, frequency):
    images = pictures(h, w, n=1, seed=seed)
    slow = oracle.sinusoid(images[0].tolist(), amplitude, frequency)
    # One grey level: a wave that meets a half is rounded either way by two ways of computing the sine.
    assert np.abs(add_sinusoid(images, amplitude, frequency)[0].astype(int) - np.array(slow)).max() <= 1


def test_the_published_sinusoid_has_six_periods_an_image_and_one_value_a_column():
    grey = np.full((1, 5, 48, 3), 128, dtype=np.uint8)
    wave = add_sinusoid(grey, 40.0, 6.0)[0].astype(int) - 128
    assert wave.max() == 40
    assert wave.min() == -40
    assert (wave == wave[:1, :, :1]).all()
    assert np.array_equal(wave[:, :8], wave[:, 8:16])
    assert wave[0, :9, 0].tolist() == [0, 28, 40, 28, 0, -28, -40, -28, 0]


def test_the_sinusoid_stops_at_black_and_white_instead_of_wrapping_around():
    dark, bright = np.zeros((1, 2, 32, 3), dtype=np.uint8), np.full((1, 2, 32, 3), 255, dtype=np.uint8)
    assert add_sinusoid(dark, 40.0, 6.0).max() == 40
    assert add_sinusoid(bright, 40.0, 6.0).min() == 215


@given(sides, sides, draws, st.floats(0, 1))
def test_blending_is_the_weighted_mean_within_half_a_grey_level(h, w, seed, alpha):
    images, pattern = pictures(h, w, n=1, seed=seed), noise_pattern(h, w, Seed(seed))
    slow = np.array(oracle.blended(images[0].tolist(), pattern.tolist(), alpha))
    assert np.abs(blend(images, pattern, alpha)[0] - slow).max() <= 0.5001


def test_blending_nothing_or_all_gives_the_image_or_the_pattern_to_the_bit():
    images, pattern = pictures(7, 5, n=3), noise_pattern(7, 5, Seed(1))
    assert np.array_equal(blend(images, pattern, 0.0), images)
    assert np.array_equal(blend(images, pattern, 1.0), np.broadcast_to(pattern, images.shape))


def test_a_noise_pattern_is_the_same_for_a_seed_and_uses_all_grey_levels():
    pattern = noise_pattern(64, 32, Seed(3))
    assert pattern.shape == (64, 32, 3)
    assert np.array_equal(pattern, noise_pattern(64, 32, Seed(3)))
    assert not np.array_equal(pattern, noise_pattern(64, 32, Seed(4)))
    assert (np.bincount(pattern.ravel(), minlength=256) > 0).all()


PUT_ON = {
    "patch": lambda images: stamp_patch(images, 3),
    "blend": lambda images: blend(images, noise_pattern(6, 9, Seed(0)), 0.2),
    "sinusoid": lambda images: add_sinusoid(images, 40.0, 6.0),
}


@pytest.mark.parametrize("put_on", PUT_ON.values(), ids=PUT_ON)
def test_the_input_is_left_as_it_was_also_where_it_cannot_be_written(put_on):
    images = pictures(6, 9)
    before = images.copy()
    images.flags.writeable = False
    out = put_on(images)
    assert np.array_equal(images, before)
    assert out.dtype == np.uint8
    assert out.flags.writeable
    assert not np.shares_memory(out, images)
