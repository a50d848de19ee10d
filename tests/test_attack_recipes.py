"""Recipes of WaNet, BPP, CTRL and Adap-*: what cover samples carry, and what training and test images do."""

import numpy as np
import pytest
from scipy.fft import dctn

from clipguard.lab.attacks.adaptive import OPACITIES, AdapBlend, AdapPatch
from clipguard.lab.attacks.patterned import CTRL
from clipguard.lab.attacks.wanet_bpp import BPP, WaNet
from clipguard.seeds import Seed
from clipguard.triggers.patterns import corners, piece_masks, quantise
from clipguard.types import image_set
from reference import images as oracle

N = 120


def grey_set(shape=(16, 16), seed=0):
    """Return random images without the outermost greys, in three classes."""
    draw = np.random.default_rng(seed)
    images = draw.integers(40, 215, (N, *shape, 3), dtype=np.uint8)
    return image_set(images, np.arange(N) % 3, ("a", "b", "c"))


def test_wanet_is_the_published_warp_of_the_attacks_own_field():
    images = grey_set().images[:2]
    field = Seed(5).child("wanet").generator().uniform(-1, 1, (2, 4, 4))
    field /= np.abs(field).mean()
    smooth = np.stack([oracle.bicubic_plane(points.tolist(), 16, 16) for points in field], axis=-1)
    triggered = WaNet(pattern_seed=5).trigger(images)
    for image, warped in zip(images, triggered, strict=True):
        slow = np.array(oracle.warped(image.tolist(), smooth.tolist(), 0.5))
        assert np.abs(warped - slow).max() <= 0.51
    assert (triggered != WaNet(pattern_seed=6).trigger(images)).any()


def test_cover_samples_of_wanet_are_warped_by_the_field_and_noise_of_their_own():
    data = grey_set()
    one = image_set(np.repeat(data.images[:1], N, axis=0), data.labels, data.class_names)
    changed, truth = WaNet().poison(one, Seed(0))
    poison, cover_images = changed.images[truth.poisoned], changed.images[truth.cover]
    assert (poison == poison[0]).all()
    assert len(np.unique(cover_images.reshape(len(cover_images), -1), axis=0)) == len(cover_images)
    assert (cover_images != poison[0]).any((1, 2, 3)).all()


def test_cover_samples_of_wanet_differ_with_the_seed_but_its_poison_does_not():
    data = grey_set()
    images = WaNet().trigger(data.images)
    first, second = (WaNet().poison(data, Seed(seed)) for seed in (0, 1))
    for changed, truth in (first, second):
        assert np.array_equal(changed.images[truth.poisoned], images[truth.poisoned])
    both = first[1].cover & second[1].cover
    assert both.any()
    assert (first[0].images[both] != second[0].images[both]).any((1, 2, 3)).all()


def test_cover_samples_of_bpp_carry_the_residual_of_another_image():
    data = grey_set()
    changed, truth = BPP(rate=0.2).poison(data, Seed(0))
    residuals = {
        (quantise(image[None], 8)[0].astype(int) - image).tobytes(): row
        for row, image in enumerate(data.images)
    }
    rows = np.flatnonzero(truth.cover)
    assert len(rows) == 24
    donors = [residuals[(changed.images[row].astype(int) - data.images[row]).tobytes()] for row in rows]
    assert (np.array(donors) != rows).all()
    assert len(set(donors)) > 12


def test_test_images_of_bpp_can_have_fewer_levels_than_its_poison():
    data = grey_set()
    usual, stronger = BPP(rate=0.2), BPP(rate=0.2, test_levels=4)
    assert np.array_equal(usual.poison(data, Seed(0))[0].images, stronger.poison(data, Seed(0))[0].images)
    assert set(np.unique(stronger.trigger(data.images))) <= {0, 85, 170, 255}
    as_in_training = BPP(levels=4)
    assert np.array_equal(as_in_training.trigger(data.images), stronger.trigger(data.images))


def test_cover_samples_of_bpp_stop_at_black_and_white():
    images = np.zeros((10, 8, 8, 3), dtype=np.uint8)
    images[5:] = 20
    data = image_set(images, np.arange(10) % 2, ("a", "b"))
    changed, truth = BPP(rate=0.5).poison(data, Seed(0))
    # 20 becomes 36: a residual of 16 on black or on 20, and none from black.
    assert set(np.unique(changed.images[truth.cover])) <= {0, 16, 20, 36}


def test_ctrl_moves_two_frequencies_of_the_colour_planes_and_hardly_the_brightness():
    images = np.full((1, 32, 32, 3), 128, dtype=np.uint8)
    change = CTRL().trigger(images)[0].astype(float) - 128
    brightness = change @ (0.299, 0.587, 0.114)
    assert np.abs(brightness).max() < 1
    for channel, factor in ((2, 0.492), (0, 0.877)):
        spectrum = dctn(factor * (change[..., channel] - brightness), norm="ortho")
        largest = np.argsort(np.abs(spectrum), axis=None)[-2:]
        assert {np.unravel_index(place, (32, 32)) for place in largest} == {(15, 15), (31, 31)}
        # Pixels are whole numbers, which moves each coefficient by about half a grey level.
        assert spectrum.flat[largest] == pytest.approx(100, abs=2)
    assert np.array_equal(CTRL(magnitude=0.0).trigger(images), images)


def test_adap_blend_shows_half_of_the_pieces_weaker_in_training_and_all_of_them_in_test():
    data = grey_set()
    attack = AdapBlend(rate=0.2)
    changed, truth = attack.poison(data, Seed(0))
    whole = attack.trigger(data.images).astype(int) - data.images
    moved = changed.images.astype(int) - data.images
    for row in np.flatnonzero(truth.poisoned | truth.cover):
        pieces = moved[row].reshape(4, 4, 4, 4, 3).swapaxes(1, 2).reshape(16, -1)
        changed_pieces = pieces.any(1)
        assert changed_pieces.sum() == 8
        expected = (
            whole[row].reshape(4, 4, 4, 4, 3).swapaxes(1, 2).reshape(16, -1)[changed_pieces] * 0.15 / 0.2
        )
        assert np.abs(pieces[changed_pieces] - expected).max() <= 0.5 + 0.5 * 0.75 + 1e-3
    assert (np.abs(whole) > 0).mean() > 0.9


def test_pieces_of_adap_blend_follow_the_seed():
    data, attack = grey_set(), AdapBlend(rate=0.2)
    changed, truth = attack.poison(data, Seed(3))
    mask = piece_masks(int(truth.poisoned.sum()), 16, 16, 4, Seed(3).child("pieces"))
    moved = (changed.images != data.images).any(3)[truth.poisoned]
    assert not (moved & ~mask).any()


def test_adap_patch_puts_one_weak_patch_in_turn_and_all_of_them_opaque_in_test():
    data, attack = grey_set(), AdapPatch(rate=0.2)
    changed, truth = attack.poison(data, Seed(0))
    opaque = attack.trigger(data.images)
    squares = corners(16, 16)
    assert np.array_equal(opaque[:, ~squares.any(0)], data.images[:, ~squares.any(0)])
    assert (opaque[:, squares.any(0)] == opaque[0, squares.any(0)]).all()
    for mask in (truth.poisoned, truth.cover):
        for turn, row in enumerate(np.flatnonzero(mask)):
            inside = squares[turn % 4]
            assert np.array_equal(changed.images[row][~inside], data.images[row][~inside])
            share = OPACITIES[turn % 4]
            mixed = (1 - share) * data.images[row][inside] + share * opaque[row][inside]
            assert np.abs(changed.images[row][inside] - mixed).max() <= 0.501


@pytest.mark.parametrize("attack", [WaNet(), BPP(), AdapBlend(rate=0.1), AdapPatch(rate=0.1)])
def test_an_empty_set_of_test_images_stays_empty(attack):
    empty = np.zeros((0, 8, 8, 3), dtype=np.uint8)
    assert attack.trigger(empty).shape == empty.shape
