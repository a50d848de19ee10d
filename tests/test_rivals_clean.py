"""Rivals that need clean samples: what each does to a backdoor, within which time, and that it repeats."""

from dataclasses import replace

import numpy as np
import pytest

from clipguard.compute.inference import features
from clipguard.defenses import Case, Repaired
from clipguard.defenses.clean_slice import SHARE
from clipguard.defenses.clipguard import unfitted
from clipguard.defenses.rivals import clean_start as clean_start_module
from clipguard.defenses.rivals.clean_start import CleanDataSettings, clean_start
from clipguard.defenses.rivals.distillation import AttentionDistillation
from clipguard.defenses.rivals.fine_pruning import FinePruning
from clipguard.defenses.rivals.finetuning import FineTuning
from clipguard.defenses.rivals.hypergradient import ImplicitUnlearning
from clipguard.defenses.rivals.neuron_pruning import NeuronPruning
from clipguard.defenses.rivals.sharpness_aware_tuning import SharpnessAwareTuning
from clipguard.models.spec import weights_digest
from test_defenses import case as scanned_case  # noqa: F401  # a fixture
from tiny_backdoor import accuracy, attack_success, backdoored
from tiny_runs import CONFIG

# These images are learned so well that published rates move nothing: 40 of them give some steps only.
FORCEFUL = {
    "ft": FineTuning(origin="given", epochs=40, batch_size=4, lr=0.1),
    "nad": AttentionDistillation(origin="given", epochs=60, first_epochs=50),
    "fp": FinePruning(origin="given", epochs=40, batch_size=8, lr=0.1),
    "anp": NeuronPruning(origin="given", steps=120, batch_size=40, lr=1.0),
    "i-bau": ImplicitUnlearning(
        origin="given", batch_size=10, rounds=8, lr=1e-2, noise_lr=1000.0, patched_share=0.3
    ),
    "ft-sam": SharpnessAwareTuning(origin="given", epochs=30, batch_size=8, lr=0.05),
}
BRIEF = {
    "ft": FineTuning(origin="given", epochs=4),
    "nad": AttentionDistillation(origin="given", epochs=4, teacher_epochs=4),
    "fp": FinePruning(origin="given", epochs=4),
    "anp": NeuronPruning(origin="given", steps=4, batch_size=16),
    "i-bau": ImplicitUnlearning(origin="given", rounds=4),
    "ft-sam": SharpnessAwareTuning(origin="given", epochs=4),
}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return backdoored(tmp_path_factory.mktemp("backdoored"))


def repaired(defense, case) -> Repaired:
    result = defense.defend(case)
    assert isinstance(result, Repaired)
    return result


@pytest.mark.parametrize("name", FORCEFUL)
def test_the_backdoor_loses_its_effect_and_the_classes_keep_theirs(case, name):
    assert attack_success(case.victim) > 0.95
    result = repaired(FORCEFUL[name], case)
    assert attack_success(result.model) < 0.5
    assert accuracy(result.model) > 0.9
    assert result.notes["schedule_share"] == 1
    assert result.seconds
    assert not set(result.seconds) & {"embeddings", "early_model"}


@pytest.mark.parametrize("name", BRIEF)
def test_the_same_seed_gives_the_same_model_and_another_one_does_not(case, name):
    one, same = (weights_digest(repaired(BRIEF[name], case).model) for _ in range(2))
    assert one == same != weights_digest(case.victim)
    if name not in ("anp", "fp"):  # Of these, so brief a run may prune alike.
        assert one != weights_digest(repaired(BRIEF[name], replace(case, seed=case.seed + 1)).model)


@pytest.mark.parametrize("name", BRIEF)
def test_a_budget_cuts_the_schedule_and_leaves_one_pass_at_least(case, name, monkeypatch):
    monkeypatch.setattr(clean_start_module, "seconds_of_clipguard", lambda *_: 1e-6)
    titles = {}
    watched = replace(case, progress=lambda title, done, total: titles.update({title: total}))
    result = repaired(replace(BRIEF[name], budget=1.0), watched)
    assert 0 <= result.notes["schedule_share"] < 0.01
    assert set(titles.values()) == {1}


def test_a_generous_budget_runs_the_published_schedule(case, monkeypatch):
    monkeypatch.setattr(clean_start_module, "seconds_of_clipguard", lambda *_: 1e6)
    limited = repaired(replace(BRIEF["nad"], budget=1.0), case)
    assert limited.notes["schedule_share"] == 1
    # Steps that were taken to measure their time are not in the result.
    assert weights_digest(limited.model) == weights_digest(repaired(BRIEF["nad"], case).model)


def test_a_budget_pays_for_half_a_schedule_that_takes_twice_as_long(case, monkeypatch):
    monkeypatch.setattr(clean_start_module, "seconds_of_clipguard", lambda *_: 2.5)
    start = clean_start(case, CleanDataSettings(origin="given", budget=2.0), "ft")
    assert start.share(lambda: 10.0) == 0.5
    unlimited = clean_start(case, CleanDataSettings(origin="given"), "ft")
    assert unlimited.share(lambda: pytest.fail("steps were timed without a budget")) == 1


def test_the_scan_that_clean_samples_come_from_is_counted_and_paid_first(scanned_case, monkeypatch):  # noqa: F811
    result = repaired(FineTuning(config=CONFIG, epochs=1), scanned_case)
    assert {"embeddings", "early_model", "samples", "fine-tuning"} <= set(result.seconds)
    assert "unlearning" not in result.seconds
    defender, source = unfitted(scanned_case, CONFIG)
    partition = defender.scan(source).partition_
    trusted = {image.tobytes() for image in np.asarray(scanned_case.data.images)[partition.clean]}
    scan = sum(stage.seconds for stage in defender.stages_.values())
    monkeypatch.setattr(clean_start_module, "seconds_of_clipguard", lambda *_: scan + 3)
    start = clean_start(scanned_case, CleanDataSettings(config=CONFIG, budget=1.0), "ft")
    assert start.seconds_left == pytest.approx(3)
    samples = [*np.asarray(start.learned.images), *np.asarray(start.held_out.images)]
    assert len(samples) == round(SHARE * len(scanned_case.data))
    assert {image.tobytes() for image in samples} <= trusted
    embedded = replace(scanned_case, guide_pass_seconds=2.0)
    slow = clean_start(embedded, CleanDataSettings(config=CONFIG, budget=1.0), "ft")
    assert slow.seconds_left == pytest.approx(1)


def test_fine_pruning_silences_the_inputs_that_clean_samples_use_least_and_keeps_them_silent(case):
    result = repaired(FORCEFUL["fp"], case)
    silent = np.flatnonzero((result.model.network.head.weight == 0).all(0))
    assert 0 < len(silent) == round(result.notes["pruned"] * 32)
    learned = clean_start(case, FORCEFUL["fp"], "fp").learned
    activity = features(case.victim, learned.images, np.arange(len(learned))).mean(0)
    others = np.setdiff1d(np.arange(32), silent)
    assert activity[silent].max() <= activity[others].min()


def test_neuron_pruning_changes_no_weight_but_the_scales_of_pruned_channels(case):
    result = repaired(FORCEFUL["anp"], case)
    before, after = case.victim.state_dict(), result.model.state_dict()
    changed = {name for name, value in after.items() if not value.equal(before[name])}
    assert changed
    assert all(name.endswith(".weight") and before[name].ndim == 1 for name in changed)
    pruned = sum(int((after[name] == 0).sum()) for name in changed)
    channels = sum(len(before[name]) for name in before if name.endswith("running_mean"))
    assert pruned == round(result.notes["pruned"] * channels)
