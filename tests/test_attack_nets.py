"""lab.attacks.unet, .tensors, .row_choice: any size, exact pixels, images apart from their neighbours."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipguard.errors import ClipguardError
from clipguard.lab.attacks.row_choice import highest, places_of
from clipguard.lab.attacks.tensors import batches, pixels, to_images, transformed
from clipguard.lab.attacks.unet import UNet
from clipguard.models.spec import ModelSpec, build, logits_of
from clipguard.seeds import Seed
from clipguard.types import image_set
from tiny_attacks import tiny_set


def unet(outputs=3):
    with Seed(0).torch_global():
        return UNet(3, outputs, 4).eval()


@pytest.mark.parametrize("size", [(16, 16), (17, 22), (19, 16), (33, 18)])
def test_a_unet_keeps_the_size_of_its_images(size):
    x = pixels(tiny_set(2, size).images)
    assert unet(1)(x).shape == (2, 1, *size)


def test_what_a_unet_makes_of_an_image_does_not_depend_on_the_batch():
    x = pixels(tiny_set(6).images)
    net = unet().train()
    assert torch.allclose(net(x)[2], net(x[2:3])[0], atol=1e-5)


def test_pixels_and_back_are_the_same_images():
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    x = pixels(images)
    assert (x.shape, float(x.min()), float(x.max())) == ((1, 3, 16, 16), 0.0, 1.0)
    assert np.array_equal(to_images(x), images)
    assert to_images(x + 2).min() == 255


def test_images_are_transformed_one_and_all():
    images = tiny_set(3).images
    assert np.array_equal(transformed(lambda x: 1 - x, images), 255 - images)
    assert transformed(lambda x: 1 - x, images[:0]).shape == (0, 16, 16, 3)


def test_images_of_a_read_only_memory_map_are_taken_without_a_warning(tmp_path):
    np.save(tmp_path / "images.npy", tiny_set(3).images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert transformed(lambda x: x, mapped).shape == mapped.shape


@given(st.integers(1, 90), st.integers(1, 40), st.integers(0, 9))
def test_batches_hold_every_row_once_and_none_is_tiny(n, size, seed):
    parts = list(batches(n, size, Seed(seed)))
    assert sorted(np.concatenate(parts)) == list(range(n))
    lengths = [len(part) for part in parts]
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1


def test_logits_of_pixels_are_those_of_the_images():
    images = tiny_set(4).images
    model = build(ModelSpec.sized(architecture="shallow-4", num_classes=3, input_size=(16, 16)), Seed(0))
    x = pixels(images).requires_grad_()
    whole = model(torch.from_numpy(images).permute(0, 3, 1, 2))
    logits = logits_of(model, x)
    assert torch.allclose(logits, whole, atol=1e-4)
    logits.sum().backward()
    assert x.grad.abs().sum() > 0


@given(st.lists(st.integers(-9, 9), min_size=4, max_size=40), st.sampled_from([0.1, 0.25, 0.5]))
def test_the_highest_scores_are_taken_and_ties_go_to_the_first(scores, rate):
    values = np.array(scores, dtype=np.float64)
    order = sorted(range(len(scores)), key=lambda row: (-scores[row], row))
    assert highest(values, rate).tolist() == sorted(order[: round(rate * len(scores))])


def test_rows_that_cannot_be_taken_are_not():
    scores = np.array([-np.inf, 1.0, -np.inf, -5.0])
    assert highest(scores, 0.5).tolist() == [1, 3]
    with pytest.raises(ClipguardError, match="asks for 3 of 4 samples but only 2 can carry it"):
        highest(scores, 0.75)


def test_samples_are_found_again_among_those_of_the_fit():
    data = tiny_set(9)
    rows = np.array([7, 2, 3])
    assert places_of(data.take(rows), data).tolist() == rows.tolist()


def test_samples_of_no_fit_are_refused():
    data = tiny_set(9)
    relabelled = image_set(data.images, (data.labels + 1) % 3, data.class_names, data.ids)
    for other in (tiny_set(12), relabelled):
        with pytest.raises(ClipguardError, match="fit it to this one"):
            places_of(other, data)
