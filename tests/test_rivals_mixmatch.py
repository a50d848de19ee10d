"""MixMatch: its parts against loops, and that unlabelled samples help."""

import math

import numpy as np
import pytest
import torch

from clipguard.compute.inference import classifier_logits
from clipguard.defenses.rivals.mixmatch import (
    MixMatch,
    MixMatchConfig,
    cycled,
    mixed,
    mixmatch_loss,
    sharpened,
)
from clipguard.errors import ClipguardError
from clipguard.models.spec import ModelSpec, build
from clipguard.seeds import Seed
from tiny_rivals import faint_set

SPEC = ModelSpec.sized(architecture="shallow-8", num_classes=3, input_size=(16, 16))
LOGITS = np.random.default_rng(0).normal(0, 2, (2, 5, 3))


def softmax(row):
    odds = [math.exp(value) for value in row]
    return [one / sum(odds) for one in odds]


def test_a_guess_is_the_sharpened_mean_of_the_views():
    expected = []
    for first, second in zip(*LOGITS, strict=True):
        squares = [((a + b) / 2) ** 2 for a, b in zip(softmax(first), softmax(second), strict=True)]
        expected.append([one / sum(squares) for one in squares])
    guess = sharpened([torch.tensor(one) for one in LOGITS], 0.5)
    assert guess.numpy() == pytest.approx(np.array(expected))


def test_the_loss_is_that_of_loops():
    logits, targets = LOGITS[0], np.array([softmax(row) for row in LOGITS[1]])
    labelled = (
        -sum(
            q * math.log(p)
            for row, target in zip(logits[:2], targets[:2], strict=True)
            for p, q in zip(softmax(row), target, strict=True)
        )
        / 2
    )
    errors = [
        (p - q) ** 2
        for row, target in zip(logits[2:], targets[2:], strict=True)
        for p, q in zip(softmax(row), target, strict=True)
    ]
    value = mixmatch_loss(torch.tensor(logits), torch.tensor(targets), 2, 7.0)
    assert value.item() == pytest.approx(labelled + 7 * sum(errors) / len(errors))


def test_a_row_is_mixed_with_the_one_in_its_place():
    values = torch.arange(6.0).view(3, 2)
    result = mixed(values, 0.75, torch.tensor([2, 0, 1]))
    assert result.tolist() == [[1.0, 2.0], [1.5, 2.5], [3.5, 4.5]]


def test_rows_come_in_rounds_and_none_at_all_is_refused():
    rows = cycled(np.array([3, 5, 9]), 8, Seed(0))
    assert sorted(rows[:3]) == sorted(rows[3:6]) == [3, 5, 9]
    assert len(rows) == 8
    with pytest.raises(ClipguardError, match="one kind is missing"):
        cycled(np.zeros(0, np.int64), 8, Seed(0))


def test_a_few_labels_and_many_images_without_make_a_classifier_and_the_seed_decides():
    data, _ = faint_set(240, share=0.0, contrast=60)
    accuracies, results = [], []
    for seed in (0, 0, 1):
        training = MixMatch(build(SPEC, Seed(5)), data.images, data.labels, MixMatchConfig(batch_size=32))
        for number in range(4):
            weights = [5 * (number + step / 25) / 4 for step in range(25)]
            training.train(np.arange(30), np.arange(30, 240), weights, Seed(seed).child(number))
        results.append(classifier_logits(training.model, data.images))
        accuracies.append(float((results[-1].argmax(1) == data.labels).mean()))
    assert min(accuracies) > 0.9
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_labels_of_unlabelled_samples_are_never_read():
    data, _ = faint_set(120, share=0.0, contrast=60)
    hidden, results = data.labels.copy(), []
    hidden[30:] = 0
    for labels in (data.labels, hidden):
        training = MixMatch(build(SPEC, Seed(5)), data.images, labels, MixMatchConfig(batch_size=32))
        training.train(np.arange(30), np.arange(30, 120), [3.0] * 4, Seed(0))
        results.append(classifier_logits(training.model, data.images))
    assert np.array_equal(*results)


def test_a_training_that_diverges_says_so():
    data, _ = faint_set(60)
    training = MixMatch(build(SPEC, Seed(5)), data.images, data.labels, MixMatchConfig(batch_size=16))
    with pytest.raises(ClipguardError, match="MixMatch diverged"):
        training.train(np.arange(30), np.arange(30, 60), [float("nan")], Seed(0))
