"""defenses.clean_slice and .budget: what clean-data defences learn from, and for how long."""

from dataclasses import replace

import numpy as np
import pytest

from clipguard.defenses import budget
from clipguard.defenses.budget import affordable, cut, seconds_of_clipguard
from clipguard.defenses.clean_slice import SHARE, clean_slice, learned_and_held_out
from clipguard.defenses.clipguard import fitted, unfitted
from clipguard.defenses.rivals.clean_start import CleanDataSettings, clean_start
from clipguard.defenses.rivals.finetuning import FineTuning
from clipguard.errors import ClipguardError
from clipguard.seeds import Seed
from test_defenses import DATA, case  # noqa: F401  # a fixture
from tiny_runs import CONFIG, poisoned_set

COUNT = round(SHARE * len(DATA))


def images(some):
    return {image.tobytes() for image in np.asarray(some.images)}


def test_the_slice_is_of_what_a_scan_trusts_and_is_the_same_for_every_defence(case):  # noqa: F811
    defender, source = unfitted(case, CONFIG)
    trusted = DATA.take(np.flatnonzero(defender.scan(source).partition_.clean))
    first, second = (clean_slice(case, "split", CONFIG).samples for _ in range(2))
    assert len(first) == COUNT
    assert images(first) <= images(trusted)
    assert images(first) == images(second)
    other = clean_slice(replace(case, seed=case.seed + 1), "split", CONFIG)
    assert images(other.samples) != images(first)


def test_given_samples_are_taken_as_they_are_and_missing_ones_are_refused(case):  # noqa: F811
    given, _ = poisoned_set(60, share=0, seed=7)
    some = clean_slice(replace(case, clean=given), "given", CONFIG).samples
    assert len(some) == COUNT
    assert images(some) <= images(given)
    with pytest.raises(ClipguardError, match="no clean samples were given: name clean_rows"):
        clean_slice(case, "given", CONFIG)
    few = given.take(np.arange(COUNT - 1))
    with pytest.raises(ClipguardError, match=f"{COUNT - 1} clean samples are there, and {COUNT} are needed"):
        clean_slice(replace(case, clean=few), "given", CONFIG)


def test_thresholds_are_chosen_on_samples_that_nothing_was_learned_from(case):  # noqa: F811
    given, _ = poisoned_set(60, share=0, seed=7)
    learned, held_out = learned_and_held_out(given, Seed(3))
    assert (len(learned), len(held_out)) == (48, 12)
    assert not images(learned) & images(held_out)


def test_the_seconds_of_clipguard_are_those_of_its_stages_and_of_the_guides_pass(case):  # noqa: F811
    stages = fitted(case, CONFIG).stages_
    expected = sum(stage.seconds for stage in stages.values())
    assert seconds_of_clipguard(case, CONFIG) == pytest.approx(expected)
    assert seconds_of_clipguard(replace(case, guide_pass_seconds=7.0), CONFIG) == pytest.approx(expected + 7)


@pytest.mark.parametrize(
    ("published", "budget", "share"),
    [(10.0, None, 1.0), (10.0, 5.0, 0.5), (10.0, 20.0, 1.0), (0.0, 1.0, 1.0)],
)
def test_a_schedule_is_cut_to_what_the_budget_pays_for_and_never_to_nothing(published, budget, share):
    assert affordable(published, budget) == share
    assert cut(10, share) == 10 * share
    assert cut(3, 1e-6) == 1


def test_every_defence_pays_for_its_scan_with_the_guides_pass_and_for_no_other(case, monkeypatch):  # noqa: F811
    monkeypatch.setattr(budget, "seconds_of_clipguard", lambda *_: 10.0)
    embedded = replace(case, guide_pass_seconds=2.0)
    assert budget.seconds_left(embedded, CONFIG, 3.0, {"early_model": 4.0, "samples": 1.0}) == 30 - 5 - 2
    assert budget.seconds_left(embedded, CONFIG, 3.0, {}) == 30
    assert budget.seconds_left(embedded, CONFIG, 0.1, {"early_model": 4.0}) == 0
    assert budget.seconds_left(embedded, CONFIG, None, {"early_model": 4.0}) is None


def test_the_scan_that_clean_samples_come_from_is_counted_and_paid_first(case, monkeypatch):  # noqa: F811
    result = FineTuning(config=CONFIG, epochs=1, published_samples=0).defend(case)
    assert {"embeddings", "early_model", "samples", "fine-tuning"} <= set(result.seconds)
    assert "unlearning" not in result.seconds
    defender, source = unfitted(case, CONFIG)
    partition = defender.scan(source).partition_
    trusted = {image.tobytes() for image in np.asarray(case.data.images)[partition.clean]}
    scan = sum(stage.seconds for stage in defender.stages_.values())
    monkeypatch.setattr(budget, "seconds_of_clipguard", lambda *_: scan + 3)
    start = clean_start(case, CleanDataSettings(config=CONFIG, budget=1.0), "ft")
    assert start.seconds_left == pytest.approx(3)
    samples = [*np.asarray(start.learned.images), *np.asarray(start.held_out.images)]
    assert len(samples) == round(SHARE * len(case.data))
    assert {image.tobytes() for image in samples} <= trusted
    embedded = replace(case, guide_pass_seconds=2.0)
    slow = clean_start(embedded, CleanDataSettings(config=CONFIG, budget=1.0), "ft")
    assert slow.seconds_left == pytest.approx(1)
