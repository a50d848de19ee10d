"""lab.attacks.surrogate: a classifier that has learned the data, and patterns that mislead it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clipguard.errors import ClipguardError
from clipguard.lab.attacks import fit_attack
from clipguard.lab.attacks.surrogate import (
    search_batches,
    surrogate_of,
    target_loss,
    universal,
)
from clipguard.lab.attacks.tensors import pixels
from clipguard.models.spec import logits_of
from clipguard.seeds import Seed
from tiny_attacks import TRAINED, coloured_set, tiny_set

WELL_TRAINED = {"epochs": 20, "lr": 0.05, "steps": 60}
RECIPE = replace(TRAINED["lf"], **WELL_TRAINED)


def quiet(*step):
    pass


@pytest.fixture(scope="module")
def model():
    return surrogate_of(RECIPE, coloured_set(), Seed(3), quiet)


@pytest.mark.parametrize("target", [0, 1, 2])
@pytest.mark.parametrize("name", ["trojan-nn", "lf", "narcissus"])
def test_the_trigger_raises_the_logit_of_the_target_on_the_surrogate(name, target):
    attack = fit_attack(replace(TRAINED[name], target=target, **WELL_TRAINED), coloured_set(), Seed(3))
    # As the attack trained its own: of the same seed.
    model = surrogate_of(attack, coloured_set(), Seed(3), quiet)
    others = coloured_set(30, seed=9)
    images = others.images[others.labels != target]
    with torch.no_grad():
        clean, triggered = (
            logits_of(model, pixels(some))[:, target] for some in (images, attack.trigger(images))
        )
    assert bool((triggered > clean).all())


def test_a_surrogate_learns_the_classes_and_is_left_for_use_only(model):
    others = coloured_set(30, seed=9)
    with torch.no_grad():
        predicted = logits_of(model, pixels(others.images)).argmax(1)
    assert predicted.tolist() == others.labels.tolist()
    assert not model.training
    assert not any(weights.requires_grad for weights in model.parameters())


def test_a_surrogate_begins_and_ends_with_its_seed(model):
    again = surrogate_of(RECIPE, coloured_set(), Seed(3), quiet)
    assert all(
        torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True)
    )
    other = surrogate_of(RECIPE, coloured_set(), Seed(4), quiet)
    assert not torch.equal(model.network.head.weight, other.network.head.weight)


def test_each_step_has_a_batch_of_different_images_and_is_reported_after_the_training():
    images = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), dtype=np.uint8)
    steps = []
    recipe = replace(RECIPE, epochs=2, steps=5, batch_size=16)
    batches = list(search_batches(recipe, images, Seed(0), lambda *step: steps.append(step)))
    assert steps == [("fit the attack", done, 7) for done in (3, 4, 5, 6, 7)]
    numbers = [sorted((255 * x[:, 0, 0, 0]).round().int().tolist()) for x in batches]
    assert all(len(set(part)) == 16 for part in numbers)
    assert len({tuple(part) for part in numbers}) == 5


def test_a_step_takes_all_images_where_they_are_fewer_than_a_batch_and_nothing_where_there_are_none():
    images = tiny_set(3).images
    assert [len(x) for x in search_batches(replace(RECIPE, steps=2), images, Seed(0), quiet)] == [3, 3]
    assert not list(search_batches(RECIPE, images[:0], Seed(0), quiet))


def test_a_universal_pattern_takes_one_step_a_batch_along_the_slope_of_its_loss():
    start = torch.zeros(1, 3, 2, 2)
    batches = [torch.full((4, 3, 2, 2), value) for value in (1.0, 3.0)]
    # The slope of (pattern - x)^2 is 2 (pattern - x): half of it leads to x.
    pattern = universal(
        iter(batches[:1]), start, lambda x, v: ((v - x[:1]) ** 2).sum(), lambda v, s: v - 0.5 * s
    )
    assert torch.equal(pattern, torch.ones(1, 3, 2, 2))
    slow = universal(iter(batches), start, lambda x, v: ((v - x[:1]) ** 2).sum(), lambda v, s: v - 0.25 * s)
    assert torch.equal(slow, torch.full((1, 3, 2, 2), 0.5 + 0.5 * 2.5))
    assert not pattern.requires_grad
    assert float(start.abs().sum()) == 0


def test_the_loss_of_the_target_is_highest_where_it_is_least_likely(model):
    data = coloured_set(9)
    x = pixels(data.images)
    losses = [float(target_loss(model, x[data.labels == label], 0)) for label in (0, 1, 2)]
    assert losses[0] < 0.5 < min(losses[1:])
    likely = logits_of(model, x).softmax(1)[:, 0]
    assert float(target_loss(model, x, 0)) == pytest.approx(float(-likely.log().mean()), rel=1e-5)


def test_images_of_another_size_are_refused():
    images, pattern = np.zeros((2, 4, 6, 3), dtype=np.uint8), np.zeros((4, 6, 3), dtype=np.float32)
    assert replace(RECIPE, pattern=pattern).pattern_for(images) is pattern
    with pytest.raises(ClipguardError, match="made for images of 6x4 pixels, these have 4x6"):
        replace(RECIPE, pattern=pattern.transpose(1, 0, 2).copy()).pattern_for(images)
