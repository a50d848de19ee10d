"""compute.checkpoint: a training that was cut off ends with the same weights, to the byte."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clipguard.compute.checkpoint import load_checkpoint, save_checkpoint
from clipguard.compute.training import Recipe, cross_entropy, fit
from clipguard.models.spec import ModelSpec, build, save
from clipguard.seeds import Seed

SPEC = ModelSpec.sized(architecture="preactresnet18-4", num_classes=2, input_size=(8, 8))
RECIPE = Recipe(epochs=4, lr=0.05, batch_size=8)
IMAGES = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(24) % 2


class Killed(BaseException):
    """Stands for the end of a process: nothing in clipguard may catch it."""


def trained(path, checkpoint, recipe=RECIPE, *, killed_in=None):
    """Return the bytes of a model's file after training, and its losses; None where it was killed."""
    model, steps = build(SPEC, Seed(7)), [0]
    plain = cross_entropy(LABELS)

    def loss(logits, rows, images):
        steps[0] += 1
        if steps[0] == killed_in:
            raise Killed
        return plain(logits, rows, images)

    history = fit(model, IMAGES, np.arange(24), loss, recipe, Seed(1), None, checkpoint)
    save(model, SPEC, path)
    return path.read_bytes(), history.columns["loss"], steps[0]


def test_a_model_with_dropout_ends_with_the_same_weights_whatever_was_drawn_before(tmp_path):
    made = []
    for drawn in (1, 2):
        torch.rand(drawn)
        model = build(SPEC, Seed(7))
        model.network.head = torch.nn.Sequential(torch.nn.Dropout(0.5), model.network.head)
        state = torch.random.get_rng_state()
        fit(model, IMAGES, np.arange(24), cross_entropy(LABELS), RECIPE, Seed(1))
        assert torch.equal(torch.random.get_rng_state(), state)
        made.append(model.network.state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("killed_in", [1, 5, 12])
def test_a_training_killed_in_any_step_goes_on_to_the_same_bytes_and_losses(tmp_path, optimizer, killed_in):
    recipe = replace(RECIPE, optimizer=optimizer, lr=0.05 if optimizer == "sgd" else 0.002)
    weights, losses, steps = trained(tmp_path / "whole.safetensors", None, recipe)
    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Killed):
        trained(tmp_path / "none.safetensors", checkpoint, recipe, killed_in=killed_in)
    again, same_losses, left = trained(tmp_path / "again.safetensors", checkpoint, recipe)
    assert again == weights
    assert same_losses == losses
    # No more than the epoch that was cut off is done twice.
    assert left == steps - 3 * ((killed_in - 1) // 3)


def test_the_momentum_matters_so_the_comparison_can_fail(tmp_path):
    weights, _, _ = trained(tmp_path / "whole.safetensors", None)
    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Killed):
        trained(tmp_path / "none.safetensors", checkpoint, killed_in=8)
    model, optimizer = fresh()
    done = load_checkpoint(checkpoint, model, optimizer)
    save_checkpoint(checkpoint, model, fresh()[1], done)
    assert trained(tmp_path / "again.safetensors", checkpoint)[0] != weights


def fresh():
    model = build(SPEC, Seed(7))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def never(logits, rows, images):
    pytest.fail("no step is left to be done")


def test_a_finished_training_is_read_back_and_its_hook_hears_of_every_epoch(tmp_path):
    checkpoint, heard = tmp_path / "checkpoint.safetensors", []
    trained(tmp_path / "a.safetensors", checkpoint)
    model = build(SPEC, Seed(7))
    fit(model, IMAGES, np.arange(24), never, RECIPE, Seed(1), heard.append, checkpoint)
    assert heard == [1, 2, 3, 4]


@pytest.mark.parametrize("content", [b"", b"torn", b"\xff" * 64])
def test_a_damaged_checkpoint_counts_as_none(tmp_path, content):
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes(content)
    model, optimizer = fresh()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert load_checkpoint(checkpoint, model, optimizer) == []
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_clock_goes_on_where_it_stopped(tmp_path):
    checkpoint = tmp_path / "checkpoint.safetensors"
    model, optimizer = fresh()
    save_checkpoint(checkpoint, model, optimizer, [(0.5, 100.0), (0.4, 200.0)])
    history = fit(model, IMAGES, np.arange(24), cross_entropy(LABELS), RECIPE, Seed(1), None, checkpoint)
    seconds = history.columns["seconds"]
    assert seconds[:2] == (100.0, 200.0)
    assert 200.0 < seconds[2] < seconds[3] <= history.seconds < 300.0
