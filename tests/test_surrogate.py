"""lab.attacks.surrogate: a classifier that has learnt the data, and patterns that mislead it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clipguard.errors import ClipguardError
from clipguard.lab.attacks.nets import logits_of, pixels
from clipguard.lab.attacks.protocol import prepare
from clipguard.lab.attacks.surrogate import check_size, missed, shown, taught, universal, untrained
from clipguard.seeds import Seed
from tiny_attacks import TRAINED, coloured_set, tiny_set

CPU = torch.device("cpu")
WELL_TAUGHT = {"epochs": 20, "lr": 0.05, "steps": 60}
RECIPE = replace(TRAINED["lf"], **WELL_TAUGHT)


@pytest.fixture(scope="module")
def model():
    return taught(RECIPE, coloured_set(), Seed(3), None)


@pytest.mark.parametrize("target", [0, 1, 2])
@pytest.mark.parametrize("name", ["trojan-nn", "lf", "narcissus"])
def test_the_trigger_raises_the_logit_of_the_target_on_the_surrogate(name, target):
    attack = prepare(replace(TRAINED[name], target=target, **WELL_TAUGHT), coloured_set(), Seed(3))
    unseen = coloured_set(30, seed=9)
    images = unseen.images[unseen.labels != target]
    with torch.no_grad():
        clean, triggered = (
            logits_of(attack.surrogate, pixels(some))[:, target] for some in (images, attack.trigger(images))
        )
    assert bool((triggered > clean).all())


def test_a_surrogate_learns_the_classes_and_is_left_for_use_only(model):
    unseen = coloured_set(30, seed=9)
    with torch.no_grad():
        found = logits_of(model, pixels(unseen.images)).argmax(1)
    assert found.tolist() == unseen.labels.tolist()
    assert not model.training
    assert not any(weights.requires_grad for weights in model.parameters())


def test_a_surrogate_begins_and_ends_with_its_seed(model):
    again = taught(RECIPE, coloured_set(), Seed(3), None)
    assert all(
        torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True)
    )
    begun, same, other = (untrained(RECIPE, coloured_set(), Seed(s)).network.head.weight for s in (3, 3, 4))
    assert torch.equal(begun, same)
    assert not torch.equal(begun, other)


def test_each_step_shows_a_batch_of_different_images_and_is_told_after_the_training():
    images = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), dtype=np.uint8)
    told = []
    recipe = replace(RECIPE, epochs=2, steps=5, batch_size=16)
    batches = list(shown(recipe, images, CPU, Seed(0), lambda *step: told.append(step)))
    assert told == [(3, 7), (4, 7), (5, 7), (6, 7), (7, 7)]
    numbers = [sorted((255 * x[:, 0, 0, 0]).round().int().tolist()) for x in batches]
    assert all(len(set(part)) == 16 for part in numbers)
    assert len({tuple(part) for part in numbers}) == 5


def test_a_step_shows_all_images_where_they_are_fewer_than_a_batch_and_nothing_where_there_are_none():
    images = tiny_set(3).images
    assert [len(x) for x in shown(replace(RECIPE, steps=2), images, CPU, Seed(0), None)] == [3, 3]
    assert not list(shown(RECIPE, images[:0], CPU, Seed(0), None))


def test_a_universal_pattern_takes_one_move_a_batch_along_the_slope_of_its_loss():
    start = torch.zeros(1, 3, 2, 2)
    batches = [torch.full((4, 3, 2, 2), value) for value in (1.0, 3.0)]
    # The slope of (pattern - x)^2 is 2 (pattern - x): half of it leads to x.
    found = universal(
        iter(batches[:1]), start, lambda x, v: ((v - x[:1]) ** 2).sum(), lambda v, s: v - 0.5 * s
    )
    assert torch.equal(found, torch.ones(1, 3, 2, 2))
    slow = universal(iter(batches), start, lambda x, v: ((v - x[:1]) ** 2).sum(), lambda v, s: v - 0.25 * s)
    assert torch.equal(slow, torch.full((1, 3, 2, 2), 0.5 + 0.5 * 2.5))
    assert not found.requires_grad
    assert float(start.abs().sum()) == 0


def test_the_target_is_missed_most_where_it_is_least_likely(model):
    data = coloured_set(9)
    x = pixels(data.images)
    losses = [float(missed(model, x[data.labels == label], 0)) for label in (0, 1, 2)]
    assert losses[0] < 0.5 < min(losses[1:])
    likely = logits_of(model, x).softmax(1)[:, 0]
    assert float(missed(model, x, 0)) == pytest.approx(float(-likely.log().mean()), rel=1e-5)


def test_images_of_another_size_are_refused():
    images, pattern = np.zeros((2, 4, 6, 3), dtype=np.uint8), np.zeros((4, 6, 3), dtype=np.float32)
    check_size(images, pattern)
    with pytest.raises(ClipguardError, match="made for images of 6x4 pixels, these have 4x6"):
        check_size(images, pattern.transpose(1, 0, 2).copy())
