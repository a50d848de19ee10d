"""Rivals that need clean samples: what each does to a backdoor, and to the weights."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from clipguard.compute.inference import features
from clipguard.defenses import Case, Repaired
from clipguard.defenses.rivals.clean_start import clean_start
from clipguard.defenses.rivals.distillation import AttentionDistillation
from clipguard.defenses.rivals.fine_pruning import FinePruning
from clipguard.defenses.rivals.finetuning import FineTuning
from clipguard.defenses.rivals.hypergradient import ImplicitUnlearning
from clipguard.defenses.rivals.neuron_pruning import NeuronPruning, fresh_masks, scaled_layers
from clipguard.defenses.rivals.sharpness_aware_tuning import SharpnessAwareTuning
from clipguard.models.spec import Normalized, weights_digest
from test_defenses import case as scanned_case  # noqa: F401  # a fixture
from tiny_backdoor import accuracy, attack_success, backdoored

# These images are learned so well that published rates move nothing: 40 of them give some steps only.
FORCEFUL = {
    "ft": FineTuning(origin="given", published_samples=0, epochs=40, batch_size=4, lr=0.1),
    "nad": AttentionDistillation(origin="given", published_samples=0, epochs=60, batch_size=8, lr=0.1),
    "fp": FinePruning(origin="given", published_samples=0, epochs=40, batch_size=8, lr=0.1),
    "anp": NeuronPruning(origin="given", steps=120, batch_size=40, lr=1.0, crop=0.0),
    "i-bau": ImplicitUnlearning(
        origin="given",
        published_samples=0,
        batch_size=10,
        rounds=20,
        lr=3e-3,
        noise_lr=3.0,
        patched_share=0.2,
    ),
    "ft-sam": SharpnessAwareTuning(
        origin="given", published_samples=0, epochs=30, batch_size=8, lr=0.05, crop=0.0
    ),
}


RESULTS: dict[str, Repaired] = {}
"""What the defences have given so far, by name."""


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return backdoored(tmp_path_factory.mktemp("backdoored"))


def repaired(name, case) -> Repaired:
    if name not in RESULTS:
        RESULTS[name] = FORCEFUL[name].defend(case)
    return RESULTS[name]


def less_certain(model: Normalized) -> Normalized:
    """Return the model with lower logits: noise is made of slopes, which a certain model does not have."""
    with torch.no_grad():
        for weight in model.network.head.parameters():
            weight.mul_(0.2)
    return model


@pytest.mark.parametrize("name", FORCEFUL)
def test_the_backdoor_loses_its_effect_and_the_classes_keep_theirs(case, name):
    victim = case.victim
    assert attack_success(victim) > 0.95
    if name == "i-bau":
        case = replace(case, train_victim=lambda: less_certain(copy.deepcopy(victim)))
    result = repaired(name, case)
    assert attack_success(result.model) < 0.5
    assert accuracy(result.model) > 0.9
    assert result.notes["schedule_share"] == 1
    assert result.seconds
    assert not set(result.seconds) & {"embeddings", "early_model"}


def test_fine_pruning_silences_the_inputs_that_clean_samples_use_least_and_keeps_them_silent(case):
    result = repaired("fp", case)
    silent = np.flatnonzero((result.model.network.head.weight == 0).all(0))
    assert 0 < len(silent) == round(result.notes["pruned"] * 32)
    learned = clean_start(case, FORCEFUL["fp"], "fp").learned
    activity = features(case.victim, learned.images, np.arange(len(learned))).mean(0)
    others = np.setdiff1d(np.arange(32), silent)
    assert activity[silent].max() <= activity[others].min()


def test_neuron_pruning_changes_no_weight_but_the_scales_of_pruned_channels(case):
    result = repaired("anp", case)
    before, after = case.victim.state_dict(), result.model.state_dict()
    changed = {name for name, value in after.items() if not value.equal(before[name])}
    assert changed
    assert all(name.endswith(".weight") and before[name].ndim == 1 for name in changed)
    pruned = sum(int((after[name] == 0).sum()) for name in changed)
    channels = sum(len(before[name]) for name in before if name.endswith("running_mean"))
    assert pruned == round(result.notes["pruned"] * channels)


def test_no_channel_is_pruned_where_the_lowest_threshold_already_costs_too_much(case):
    start = clean_start(case, FORCEFUL["anp"], "anp")
    masks = {
        name: torch.zeros_like(mask)
        for name, mask in fresh_masks(start.model, scaled_layers(start.model)).items()
    }
    assert FORCEFUL["anp"]._prune(start, masks) == (0.0, 0.0)
    assert weights_digest(start.model) == weights_digest(case.victim)
