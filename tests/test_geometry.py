"""data.decode.geometry: bit for bit what open_clip and timm do with a Pillow image before normalising it."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from open_clip.transform import image_transform
from PIL import Image
from timm.data import create_transform

from clipguard.clip.loading import _preprocessing
from clipguard.data.decode import prepared
from clipguard.types import Preprocessing

SHAPES = ((32, 32), (100, 300), (301, 99), (75, 50), (96, 96), (64, 48), (7, 9), (1, 40), (40, 1), (97, 96))
HALF = (0.5, 0.5, 0.5)


def noise(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(shape).integers(0, 256, (*shape, 3), dtype=np.uint8)


def by(transform, image: np.ndarray) -> np.ndarray:
    """Return what all steps but the last two, which make tensors and normalise, do."""
    picture = Image.fromarray(image)
    for step in transform.transforms[:-2]:
        picture = step(picture)
    assert isinstance(picture, Image.Image)
    return np.asarray(picture)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [96, (64, 48), (50, 70)])
def test_images_are_what_open_clip_makes_of_them(mode, size, interpolation):
    theirs = image_transform(
        size, False, HALF, HALF, resize_mode=mode, interpolation=interpolation, fill_color=7
    )
    config = {"size": size, "resize_mode": mode, "interpolation": interpolation, "fill_color": 7}
    ours = _preprocessing(config)
    for shape in SHAPES:
        assert np.array_equal(prepared(noise(shape), ours), by(theirs, noise(shape))), shape


@pytest.mark.parametrize(
    ("mode", "resize"), [("center", "shortest"), ("squash", "squash"), ("border", "longest")]
)
@pytest.mark.parametrize("size", [(96, 96), (64, 48)])
def test_images_are_what_timm_makes_of_them(mode, resize, size):
    shapes = [shape for shape in SHAPES if min(shape) > 1]  # timm itself fails on a side of no pixel
    for crop, interpolation in product((0.875, 0.9, 0.95, 1.0), ("bicubic", "bilinear")):
        theirs = create_transform(
            (3, *size), crop_pct=crop, crop_mode=mode, interpolation=interpolation, mean=HALF, std=HALF
        )
        ours = Preprocessing(size=size, resize=resize, crop=crop, interpolation=interpolation, fill=128)
        for shape in shapes:
            assert np.array_equal(prepared(noise(shape), ours), by(theirs, noise(shape))), (shape, crop)


@given(arrays(np.uint8, st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3))), st.data())
@settings(max_examples=60)
def test_an_image_gets_exactly_the_size_asked_for_and_its_own_size_changes_nothing(image, data):
    ways = {"resize": ["squash", "shortest", "longest"], "crop": [0.8, 0.875, 1.0]}
    ways |= {"interpolation": ["nearest", "bilinear", "bicubic", "lanczos"]}
    way = {name: data.draw(st.sampled_from(values)) for name, values in ways.items()}
    size = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    made = prepared(image, Preprocessing(size=size, **way))
    assert made.shape == (*size, 3)
    assert made.dtype == np.uint8
    own = Preprocessing(size=image.shape[:2], **way | {"crop": 1.0})
    assert (prepared(image, own) == image).all()


def test_shrinking_averages_instead_of_skipping_pixels():
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2] = 255
    middle = prepared(stripes, Preprocessing(size=(8, 8)))[2:-2, 2:-2].astype(int)
    assert abs(middle - 127.5).max() < 10


def test_what_longest_leaves_over_is_filled_and_the_crop_is_the_centre():
    white = np.full((10, 20, 3), 255, np.uint8)
    framed = prepared(white, Preprocessing(size=(20, 20), resize="longest", fill=9))
    assert (framed[:5] == 9).all()
    assert (framed[5:15] == 255).all()
    assert (framed[15:] == 9).all()
    ramp = np.repeat(np.arange(20, dtype=np.uint8)[None, :, None], 10, 0).repeat(3, 2)
    centre = prepared(ramp, Preprocessing(size=(10, 10), resize="shortest"))
    assert (centre == ramp[:, 5:15]).all()
