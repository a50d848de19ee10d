"""triggers.patterns: patterns on images of any size, against pixel-by-pixel references."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from clipguard.errors import ClipguardError
from clipguard.seeds import Seed
from clipguard.triggers.patterns import (
    add_pattern,
    add_sinusoid,
    blend,
    chroma_waves,
    corners,
    noise_pattern,
    paste_patch,
    piece_masks,
    quantise,
    warp,
    warp_field,
)
from reference import images as reference

sides = st.integers(1, 12)
draws = st.integers(0, 2**32)


def pictures(h, w, n=2, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, h, w, 3), dtype=np.uint8)


@given(sides, sides, draws, st.integers(0, 14), st.integers(0, 255))
def test_a_patch_overwrites_the_bottom_right_corner_and_nothing_else(h, w, seed, size, value):
    images = pictures(h, w, seed=seed)
    patched = paste_patch(images, size, value)
    for row in range(h):
        for column in range(w):
            inside = row >= h - size and column >= w - size
            expected = np.full((2, 3), value) if inside else images[:, row, column]
            assert np.array_equal(patched[:, row, column], expected)


@given(sides, sides, draws, st.floats(0, 80), st.sampled_from([1.0, 2.5, 6.0]))
def test_the_sinusoid_is_that_of_the_formula(h, w, seed, amplitude, frequency):
    images = pictures(h, w, n=1, seed=seed)
    slow = reference.sinusoid(images[0].tolist(), amplitude, frequency)
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
    slow = np.array(reference.blended(images[0].tolist(), pattern.tolist(), alpha))
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


@given(sides, sides, draws, st.integers(2, 40))
def test_quantising_takes_the_nearest_level(h, w, seed, levels):
    images = pictures(h, w, n=1, seed=seed)
    assert quantise(images, levels)[0].tolist() == reference.quantised(images[0].tolist(), levels)


def test_quantising_to_eight_levels_leaves_eight_values_and_to_all_levels_nothing_changes():
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    assert np.unique(quantise(ramp, 8)).tolist() == [0, 36, 73, 109, 146, 182, 219, 255]
    assert np.array_equal(quantise(ramp, 256), ramp)


def test_one_level_is_no_picture():
    with pytest.raises(ClipguardError, match="1 levels of brightness"):
        quantise(pictures(4, 4), 1)


@pytest.mark.parametrize(
    ("shape", "places"),
    [((8, 8), [(3, 3), (7, 7)]), ((33, 20), [(15, 9), (32, 19)]), ((32, 32), [(15, 15), (31, 31)])],
)
def test_chroma_waves_are_what_the_whole_way_through_yuv_and_dct_gives(shape, places):
    image = pictures(*shape, n=1)[0]
    magnitude = 100 * np.sqrt(shape[0] * shape[1]) / 32
    slow = reference.chroma_moved(image.tolist(), magnitude, places)
    assert np.abs(image + chroma_waves(*shape, 100.0) - slow).max() < 1e-3
    added = add_pattern(image[None], chroma_waves(*shape, 100.0))[0]
    assert np.abs(added - slow.clip(0, 255)).max() <= 0.501


def test_chroma_waves_leave_the_brightness_and_change_pixels_as_much_at_every_size():
    for shape in ((32, 32), (64, 64), (96, 48)):
        waves = chroma_waves(*shape, 100.0)
        assert np.abs(waves @ [0.299, 0.587, 0.114]).max() < 1e-4
        assert waves.std() == pytest.approx(chroma_waves(32, 32, 100.0).std(), rel=1e-3)


@given(st.integers(8, 20), st.integers(8, 20), draws)
def test_a_warp_field_is_the_bicubic_of_points_whose_mean_size_is_one(h, w, seed):
    field = warp_field(h, w, 4, Seed(seed))
    points = Seed(seed).generator().uniform(-1, 1, (2, 4, 4))
    points /= np.abs(points).mean()
    for axis in (0, 1):
        assert np.abs(field[..., axis] - reference.bicubic_plane(points[axis].tolist(), h, w)).max() < 1e-4


@hypothesis_settings(max_examples=20)
@given(st.integers(8, 14), st.integers(8, 14), draws, st.sampled_from([0.5, 3.0]))
def test_a_warp_is_the_bilinear_value_at_the_shifted_place(h, w, seed, strength):
    image, field = pictures(h, w, n=1, seed=seed)[0], warp_field(h, w, 4, Seed(seed))
    slow = reference.warped(image.tolist(), field.tolist(), strength)
    assert np.abs(warp(image[None], field, strength)[0] - slow).max() <= 0.51


def test_a_warp_by_nothing_changes_nothing_and_its_noise_stays_within_half_a_pixel():
    images, still = pictures(33, 20, n=3), np.zeros((33, 20, 2), dtype=np.float32)
    assert np.array_equal(warp(images, still, 0.5), images)
    ramp = np.broadcast_to((np.arange(20) * 10)[None, None, :, None], (200, 33, 20, 3)).astype(np.uint8)
    noisy = warp(ramp, still, 0.5, Seed(0)).astype(int) - ramp
    # 1 / side in [-1, 1] is (side - 1) / side / 2 of a pixel, 10 grey levels each.
    assert np.abs(noisy).max() == 5
    assert (noisy[0] != noisy[1]).any()


def test_warping_in_portions_is_warping_at_once(monkeypatch):
    images, field = pictures(9, 8, n=7), warp_field(9, 8, 4, Seed(1))
    for jitter in (None, Seed(2)):
        whole = warp(images, field, 0.5, jitter)
        with monkeypatch.context() as patch:
            patch.setattr("clipguard.triggers.patterns.AT_ONCE", 0)
            assert np.array_equal(warp(images, field, 0.5, jitter), whole)


@given(sides, sides, draws)
def test_half_of_the_pieces_are_masked_whole(h, w, seed):
    masks = piece_masks(5, 4 * h, 4 * w, 4, Seed(seed))
    pieces = masks.reshape(5, 4, h, 4, w).swapaxes(2, 3).reshape(5, 16, h * w)
    assert (pieces.all(2) | ~pieces.any(2)).all()
    assert (pieces.any(2).sum(1) == 8).all()


def test_pieces_differ_between_images_and_all_of_them_are_masked_somewhere():
    masks = piece_masks(200, 33, 20, 4, Seed(0))
    assert (masks[0] != masks[1]).any()
    assert masks.any(0).all()
    assert masks.mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("h", "w", "side"), [(8, 8, 2), (33, 20, 5), (32, 32, 8)])
def test_corners_are_four_squares_that_do_not_meet(h, w, side):
    masks = corners(h, w)
    assert masks.sum((1, 2)).tolist() == [side**2] * 4
    assert masks.sum(0).max() == 1
    assert [masks[i, y, x] for i, (y, x) in enumerate([(0, 0), (0, -1), (-1, 0), (-1, -1)])] == [True] * 4


def test_blending_by_pixel_leaves_the_others_to_the_bit():
    images, pattern = pictures(6, 9, n=3), noise_pattern(6, 9, Seed(1))
    opacity = np.zeros((3, 6, 9), dtype=np.float32)
    opacity[1, 2:4, 3:5] = 0.4
    mixed = blend(images, pattern, opacity)
    expected = images.copy()
    expected[1, 2:4, 3:5] = blend(images, pattern, 0.4)[1, 2:4, 3:5]
    assert np.array_equal(mixed, expected)


TRIGGERS = {
    "patch": lambda images: paste_patch(images, 3),
    "blend": lambda images: blend(images, noise_pattern(6, 9, Seed(0)), 0.2),
    "sinusoid": lambda images: add_sinusoid(images, 40.0, 6.0),
    "levels": lambda images: quantise(images, 8),
    "chroma": lambda images: add_pattern(images, chroma_waves(6, 9, 100.0)),
    "warp": lambda images: warp(images, warp_field(6, 9, 4, Seed(0)), 0.5),
}


@pytest.mark.parametrize("trigger", TRIGGERS.values(), ids=TRIGGERS)
def test_the_input_is_left_as_it_was_also_where_it_cannot_be_written(trigger):
    images = pictures(6, 9)
    before = images.copy()
    images.flags.writeable = False
    out = trigger(images)
    assert np.array_equal(images, before)
    assert out.dtype == np.uint8
    assert out.flags.writeable
    assert not np.shares_memory(out, images)
