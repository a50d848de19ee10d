"""ABL: its loss against finite differences, what it isolates, and that the attack falls."""

import math

import numpy as np
import pytest
import torch

from clipguard.compute.training import cross_entropy
from clipguard.defenses.rivals import abl
from clipguard.defenses.rivals.abl import AntiBackdoorLearning, ascent, flooded
from clipguard.defenses.rivals.label_losses import cross_entropies, symmetric_cross_entropies
from tiny_rivals import accuracy_and_attack_success, case_of, faint_set

LABELS = np.array([0, 2, 1, 1])


def mean_nats(logits):
    total = 0.0
    for row, label in zip(logits, LABELS, strict=True):
        odds = [math.exp(value) for value in row]
        total -= math.log(odds[label] / sum(odds)) / len(LABELS)
    return total


@pytest.mark.parametrize("scale", [0.2, 12.0])
def test_flooding_pulls_the_mean_loss_of_a_batch_to_its_level_from_either_side(scale):
    own = np.eye(3)[LABELS] + np.random.default_rng(0).normal(0, 0.1, (4, 3))
    logits = torch.tensor(scale * own, requires_grad=True)
    value = flooded(cross_entropy(LABELS), 0.5)(logits, torch.arange(4), torch.empty(0))
    assert value.item() == pytest.approx(0.5 + abs(mean_nats(logits.tolist()) - 0.5))
    value.backward()
    after = mean_nats((logits.detach() - 0.1 * logits.grad).tolist())
    assert abs(after - 0.5) < abs(mean_nats(logits.tolist()) - 0.5)


def test_ascent_is_the_negative_loss():
    logits = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    value = ascent(cross_entropy(LABELS))(logits, torch.arange(4), torch.empty(0))
    assert float(value) == pytest.approx(-mean_nats(logits.tolist()))


def test_losses_of_labels_are_those_of_the_definitions():
    logits = np.random.default_rng(0).normal(0, 3, (4, 3)).astype(np.float32)
    expected = []
    for row, label in zip(logits.astype(float), LABELS, strict=True):
        p = np.exp(row) / np.exp(row).sum()
        target = np.clip(np.eye(3)[label], 1e-4, 1)
        expected.append(0.1 * -np.log(p[label]) - (p * np.log(target)).sum())
    assert symmetric_cross_entropies(logits, LABELS) == pytest.approx(np.array(expected))
    assert cross_entropies(logits, LABELS).mean() == pytest.approx(mean_nats(logits.tolist()))


def test_what_is_isolated_is_poison_and_the_attack_is_unlearnt(monkeypatch, tmp_path):
    data, poisoned = faint_set(contrast=20)
    isolated = []

    def recorded(*arguments):
        isolated.append(lowest(*arguments))
        return isolated[-1]

    lowest = abl.lowest_losses
    monkeypatch.setattr(abl, "lowest_losses", recorded)
    case = case_of(data, tmp_path)
    # Few samples take few steps: a higher rate makes up for them.
    defense = AntiBackdoorLearning(isolated=0.05, finetuning_passes=(4, 4), unlearning_lr=2e-3)
    repaired = defense.defend(case)
    assert len(isolated[0]) == 24
    assert poisoned[isolated[0]].mean() > 0.9
    assert repaired.notes == {"schedule_share": 1.0, "isolated": 24}
    assert set(repaired.seconds) == {"isolation", "finetuning", "unlearning"}
    accuracy, attack_success = accuracy_and_attack_success(repaired.model, 20)
    assert accuracy > 0.4
    assert attack_success < 0.1


def test_a_transformer_takes_part_and_a_budget_cuts_all_phases_but_unlearning(monkeypatch, tmp_path):
    passes = []

    def counted(model, images, rows, loss, recipe, *rest):
        passes.append((recipe.epochs, len(rows(recipe.epochs - 1)) if callable(rows) else len(rows)))
        return real(model, images, rows, loss, recipe, *rest)

    real = abl.fit
    monkeypatch.setattr(abl, "fit", counted)
    monkeypatch.setattr(abl, "seconds_left", lambda *_: 5.0)
    monkeypatch.setattr(AntiBackdoorLearning, "_published", lambda *_: 100.0)
    case = case_of(faint_set(100)[0], tmp_path, "vit_tiny_patch16_224")
    repaired = AntiBackdoorLearning(budget=1.0).defend(case)
    assert repaired.notes == {"schedule_share": 0.05, "isolated": 2}
    # 0.5 of 10 passes, 2 of 40, 1 of 20; no budget cuts the 20 steps of unlearning.
    assert passes == [(1, 50), (2, 98), (1, 98), (20, 2)]
