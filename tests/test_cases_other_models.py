"""A model that does not belong to its data: turned head, wrong scale of the input, weights of other data."""

import numpy as np
import pytest
import torch
from PIL import Image

from clipguard.compute.training import Recipe, cross_entropy, fit
from clipguard.models.spec import ModelSpec, build, load, save
from clipguard.seeds import Seed
from tiny_data import tree
from tiny_runs import NAMES, poisoned_set

SPEC = ModelSpec.sized(architecture="preactresnet18-4", num_classes=3, input_size=(16, 16))


def trained_on(images, labels, file):
    """Write a model that has learned the images."""
    model, recipe = build(SPEC, Seed(0)), Recipe(epochs=6, lr=0.05, batch_size=16, crop=0.0, flip=False)
    fit(model, images, np.arange(len(images)), cross_entropy(labels), recipe, Seed(0))
    save(model, SPEC, file)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with data, a model that has learned them, and a run folder that all tests go on in."""
    root = tmp_path_factory.mktemp("models")
    data, _ = poisoned_set(450, share=0.0)
    for row, (pixels, label) in enumerate(zip(data.pixels, data.labels, strict=True)):
        file = root / "data" / NAMES[label] / f"{row:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    trained_on(data.pixels, data.labels.copy(), root / "fits.safetensors")
    return root


@pytest.fixture
def defend(clipguard, place):
    """Return what runs `defend` with a model of the folder."""

    def run(model, *options):
        scan = ("defend", place / "data", "--out", place / "run", "--guide", "mini", "--power", "0")
        return clipguard(*scan, "--fail-on", "never", "--json", "--model", place / model, *options)

    return run


def refused(place, ran):
    """Check that a command was refused with what to check, and wrote no model and no result; return why."""
    assert ran.code == 2, ran.json["before"]
    message = ran.json["error"]["message"]
    assert "trusted samples, chance is " in message
    assert "check the order of classes, mean and std, resize and input size" in message
    assert not [name for name in tree(place / "run") if name.endswith((".safetensors", "summary.json"))]
    return message


# 5: the model of these data, with a turned head or another scale of the input


def test_a_model_whose_head_is_turned_is_refused_and_nothing_is_written(defend, place):
    turned = load(place / "fits.safetensors", SPEC)
    with torch.no_grad():
        for value in (turned.network.head.weight, turned.network.head.bias):
            value.copy_(value.roll(1, 0))
    save(turned, SPEC, place / "turned.safetensors")
    message = refused(place, defend("turned.safetensors"))
    assert "with its classes in another order it would be right on" in message


def test_mean_and_std_of_0_to_255_are_refused(defend, place):
    refused(place, defend("fits.safetensors", "--mean", "124,116,104", "--std", "58,57,57"))


# 20: a model of other data


def test_a_model_of_other_data_is_refused(defend, place):
    colours = np.zeros((60, 16, 16, 3), np.uint8)
    for colour in range(3):
        colours[colour::3, :, :, colour] = np.arange(20)[:, None, None] * 12
    trained_on(colours, np.arange(60) % 3, place / "other.safetensors")
    refused(place, defend("other.safetensors"))


# Without it, the tests above could not fail.


def test_the_model_of_the_data_is_repaired_in_the_same_folder(defend, place):
    ran = defend("fits.safetensors")
    assert ran.code == 0, ran.err
    assert ran.json["before"]["accuracy"] > 0.9
    assert (place / "run/model.safetensors").is_file()
