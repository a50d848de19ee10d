"""D-BR: its loss against loops, what it measures, how it splits, and that the attack falls."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from clipguard.compute.inference import classifier_logits, planes
from clipguard.compute.recipes import Recipe
from clipguard.compute.training import fit
from clipguard.defenses.rivals import d_br
from clipguard.defenses.rivals.d_br import (
    DistinguishAndRemove,
    centroid_loss,
    centroid_similarity,
    inconsistency,
    opposed,
)
from clipguard.defenses.rivals.image_changes import rotated_and_shifted
from clipguard.models.features import head_of, inputs_of
from clipguard.models.spec import ModelSpec, build
from clipguard.seeds import Seed
from tiny_rivals import accuracy_and_attack_success, case_of, faint_set

LABELS = np.array([4, 1, 1, 7, 4, 4])
VALUES = np.random.default_rng(0).normal(1, 1, (6, 5))


def similarity(values, labels):
    """Return the mean over all pairs of classes, one class with itself counting 0, by loops."""
    centroids = [
        [
            sum(v[d] for v, one in zip(values, labels, strict=True) if one == label) / sum(labels == label)
            for d in range(values.shape[1])
        ]
        for label in sorted(set(labels))
    ]
    total = 0.0
    for number, first in enumerate(centroids):
        for other, second in enumerate(centroids):
            if number != other:
                dot = sum(a * b for a, b in zip(first, second, strict=True))
                total += dot / math.hypot(*first) / math.hypot(*second)
    return total / len(centroids) ** 2


def test_the_similarity_of_centroids_is_that_of_loops():
    value = centroid_similarity(torch.tensor(VALUES), torch.tensor(LABELS))
    assert value.item() == pytest.approx(similarity(VALUES, LABELS))
    alone = torch.tensor(VALUES, requires_grad=True)
    centroid_similarity(alone, torch.zeros(6, dtype=torch.int64)).backward()
    assert alone.grad.abs().max() < 1e-12


@pytest.mark.parametrize("architecture", ["preactresnet18-4", "vit_tiny_patch16_224"])
def test_the_loss_is_of_what_the_head_is_given_and_training_lowers_it(architecture):
    data, _ = faint_set(12, contrast=60)
    images = data.pixels.repeat(2, 1).repeat(2, 2)
    model = build(ModelSpec.sized(architecture=architecture, num_classes=3, input_size=(32, 32)), Seed(0))
    recipe = Recipe(epochs=4, lr=0.01, constant=True, warmup=0.0, crop=0.0, flip=False)
    head = head_of(model, planes(images[:1]))
    with inputs_of(head) as inputs:
        loss = centroid_loss(data.labels, inputs)
        model.train()
        logits = model(planes(images))
        given = inputs[-1].detach().numpy()
        assert loss(logits, torch.arange(12), torch.empty(0)).item() == pytest.approx(
            similarity(given, data.labels), abs=1e-5
        )
        history = fit(model, images, np.arange(12), loss, recipe, Seed(0))
        assert not inputs
    assert history.columns["loss"][-1] < history.columns["loss"][0]


def test_what_is_unlearnt_is_climbed_and_what_is_relearnt_descended():
    logits, labels = torch.tensor(VALUES), LABELS % 5
    loss = opposed(labels, np.array([1, 3]))
    nats = [
        math.log(sum(math.exp(v) for v in row)) - row[label]
        for row, label in zip(VALUES, labels, strict=True)
    ]
    poison, clean = torch.tensor([3, 1]), torch.tensor([0, 2, 4])
    empty = torch.empty(0)
    assert loss(logits[poison], poison, empty).item() == pytest.approx(-(nats[1] + nats[3]) / 2)
    assert loss(logits[clean], clean, empty).item() == pytest.approx((nats[0] + nats[2] + nats[4]) / 3)


def test_what_is_measured_is_how_far_the_heads_inputs_move():
    data, _ = faint_set(30)
    model = build(ModelSpec.sized(architecture="shallow-4", num_classes=3, input_size=(16, 16)), Seed(0))
    images = planes(data.pixels)
    moved = rotated_and_shifted(images, 180.0, 0.2, Seed(1).torch())
    body, expected = model.network.features, []
    with torch.no_grad():
        for first, second in zip(images, moved, strict=True):
            maps = [body(model.scaled(one[None]))[0] for one in (first, second)]
            plain, other = ([*m.mean((1, 2)).tolist(), *m.amax((1, 2)).tolist()] for m in maps)
            expected.append(sum((a - b) ** 2 for a, b in zip(plain, other, strict=True)) / len(plain))
    assert inconsistency(model, data, Seed(1)) == pytest.approx(np.array(expected), rel=1e-4)


def test_poison_moves_most_and_the_attack_is_unlearnt(monkeypatch, tmp_path):
    data, poisoned = faint_set()
    measured, steps = [], []
    real, real_fit = d_br.inconsistency, d_br.fit

    def recorded(*arguments):
        measured.append(real(*arguments))
        return measured[-1]

    def counted(model, images, rows, loss, recipe, *rest):
        steps.append([len(rows(epoch)) for epoch in range(recipe.epochs)])
        return real_fit(model, images, rows, loss, recipe, *rest)

    monkeypatch.setattr(d_br, "inconsistency", recorded)
    monkeypatch.setattr(d_br, "fit", counted)
    case = case_of(data, tmp_path)
    before, attack_success = accuracy_and_attack_success(case.victim)
    assert attack_success > 0.9
    repaired = DistinguishAndRemove(rounds=60, published_samples=0, lr=2e-4).defend(case)
    assert roc_auc_score(poisoned, measured[0]) > 0.95
    assert steps == [[480] * 2, [480] * 10, [24, 96] * 60]
    assert repaired.notes == {"schedule_share": 1.0, "relearnt": 96, "unlearnt": 24}
    after, attack_success = accuracy_and_attack_success(repaired.model)
    assert attack_success < 0.1
    assert after > before - 0.4


def test_a_budget_cuts_all_phases_alike(monkeypatch, tmp_path):
    epochs = []
    monkeypatch.setattr(d_br, "seconds_left", lambda *_: 30.0)
    monkeypatch.setattr(DistinguishAndRemove, "_published", lambda *_: 100.0)
    real = d_br.fit

    def counted(model, images, rows, loss, recipe, *rest):
        epochs.append([len(rows(epoch)) for epoch in range(recipe.epochs)])
        return real(model, images, rows, loss, recipe, *rest)

    monkeypatch.setattr(d_br, "fit", counted)
    case = case_of(faint_set(300)[0], tmp_path)
    repaired = DistinguishAndRemove(budget=1.0, rounds=5, published_samples=0).defend(case)
    assert repaired.notes["schedule_share"] == 0.3
    # 0.6 of 2 passes, 3 of 10, 1.5 of 5 rounds.
    assert epochs == [[180], [300] * 3, [15, 60, 15, 32]]
    assert np.isfinite(classifier_logits(repaired.model, case.data.images)).all()
