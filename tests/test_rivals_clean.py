"""Rivals that need clean samples: that each repeats, and keeps within its time."""

from dataclasses import replace

import pytest

from clipguard.defenses import Case, Repaired, budget
from clipguard.defenses.rivals import clean_start as starting
from clipguard.defenses.rivals.clean_start import CleanDataSettings, clean_start
from clipguard.defenses.rivals.distillation import AttentionDistillation
from clipguard.defenses.rivals.fine_pruning import FinePruning
from clipguard.defenses.rivals.finetuning import FineTuning
from clipguard.defenses.rivals.hypergradient import ImplicitUnlearning
from clipguard.defenses.rivals.neuron_pruning import NeuronPruning
from clipguard.defenses.rivals.sharpness_aware_tuning import SharpnessAwareTuning
from clipguard.models.spec import weights_digest
from test_defenses import case as scanned_case  # noqa: F401  # a fixture
from tiny_backdoor import backdoored

BRIEF = {
    "ft": FineTuning(origin="given", published_samples=0, epochs=4),
    "nad": AttentionDistillation(origin="given", published_samples=0, epochs=4, teacher_epochs=4),
    "fp": FinePruning(origin="given", published_samples=0, epochs=4),
    "anp": NeuronPruning(origin="given", steps=4, batch_size=16),
    "i-bau": ImplicitUnlearning(origin="given", published_samples=0, rounds=2),
    "ft-sam": SharpnessAwareTuning(origin="given", published_samples=0, epochs=4),
}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return backdoored(tmp_path_factory.mktemp("backdoored"))


def repaired(defense, case) -> Repaired:
    result = defense.defend(case)
    assert isinstance(result, Repaired)
    return result


@pytest.mark.parametrize("name", BRIEF)
def test_the_same_seed_gives_the_same_model_and_another_one_does_not(case, name):
    one, same = (weights_digest(repaired(BRIEF[name], case).model) for _ in range(2))
    assert one == same != weights_digest(case.victim)
    if name not in ("anp", "fp"):  # Of these, so brief a run may prune alike.
        assert one != weights_digest(repaired(BRIEF[name], replace(case, seed=case.seed + 1)).model)


@pytest.mark.parametrize("name", BRIEF)
def test_a_budget_cuts_the_schedule_and_leaves_one_pass_at_least(case, name, monkeypatch):
    monkeypatch.setattr(budget, "seconds_of_clipguard", lambda *_: 1e-6)
    monkeypatch.setattr(starting, "seconds_of_scan", lambda *_: {})
    titles = {}
    watched = replace(case, progress=lambda title, done, total: titles.update({title: total}))
    result = repaired(replace(BRIEF[name], budget=1.0), watched)
    assert 0 <= result.notes["schedule_share"] < 0.01
    assert set(titles.values()) == {1}


def test_a_generous_budget_runs_the_published_schedule(case, monkeypatch):
    monkeypatch.setattr(budget, "seconds_of_clipguard", lambda *_: 1e6)
    monkeypatch.setattr(starting, "seconds_of_scan", lambda *_: {})
    limited = repaired(replace(BRIEF["nad"], budget=1.0), case)
    assert limited.notes["schedule_share"] == 1
    # Steps that were taken to measure their time are not in the result.
    assert weights_digest(limited.model) == weights_digest(repaired(BRIEF["nad"], case).model)


def test_a_budget_pays_for_half_a_schedule_that_takes_twice_as_long(case, monkeypatch):
    monkeypatch.setattr(budget, "seconds_of_clipguard", lambda *_: 3.5)
    # A scan is paid for where samples are given, too: both origins train for the same time.
    monkeypatch.setattr(starting, "seconds_of_scan", lambda *_: {"early_model": 2.0})
    start = clean_start(case, CleanDataSettings(origin="given", budget=2.0), "ft")
    assert start.share(lambda: 10.0) == 0.5
    unlimited = clean_start(case, CleanDataSettings(origin="given"), "ft")
    assert unlimited.share(lambda: pytest.fail("steps were timed without a budget")) == 1


@pytest.mark.parametrize("name", ["ft", "nad", "fp", "i-bau", "ft-sam"])
def test_few_samples_are_passed_over_as_often_as_the_steps_of_the_source_need(case, name):
    titles = {}
    watched = replace(case, progress=lambda title, done, total: titles.update({title: total}))
    learned = len(clean_start(case, BRIEF[name], name).learned)
    short = {"rounds": 1} if name == "i-bau" else {"epochs": 1}
    for published, passes in ((3 * learned, 3), (learned // 2, 1)):
        repaired(replace(BRIEF[name], **short, published_samples=published), watched)
        assert list(titles.values())[-1] == passes
