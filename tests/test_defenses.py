"""defenses: what is given, what comes back, and what may take part."""

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clipguard.defenses.own import Clipguard, Finetune, NoDefense, Retrain

from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.classifiers import ClassifierConfig, cached_classifier
from clipguard.compute.training import Recipe
from clipguard.defenses import DEFENSES, Case, Defense, Repaired, defense_factory, foreign_defense
from clipguard.errors import ClipguardError
from clipguard.models.spec import ModelSpec, Normalized
from clipguard.seeds import Seed
from tiny_runs import PLAN, poisoned_set

DATA, POISONED = poisoned_set(90)
SPEC = ModelSpec(architecture="shallow-4", num_classes=3, input_size=(16, 16))
RECIPE = Recipe(epochs=2, lr=0.05, batch_size=16, crop=0.0, flip=False)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder: Path = tmp_path_factory.mktemp("case")
    schooling = ClassifierConfig(spec=SPEC, recipe=RECIPE, seed=Seed(5).child("victim"))
    victim, _ = cached_classifier(schooling, DATA, folder)
    return Case(
        data=DATA,
        train_victim=lambda: victim,
        spec=SPEC,
        recipe=RECIPE,
        guide=ClipGuide("mini"),
        seed=5,
        run_dir=folder / "work",
        cache=folder,
    )


def state(model: torch.nn.Module) -> list[bytes]:
    return [value.numpy().tobytes() for value in model.state_dict().values()]


def test_every_defence_in_the_list_keeps_the_protocol():
    assert all(isinstance(make(), Defense) for make in DEFENSES.values())


def test_no_defence_gives_the_victim_back_and_every_other_leaves_it_as_it_was(case):
    before = state(case.victim)
    assert NoDefense().defend(case).model is case.victim
    for defense in (Clipguard(plan=PLAN), Retrain(plan=PLAN), Finetune(plan=PLAN)):
        cured = defense.defend(case)
        assert state(cured.model) != before, defense
        assert all(spent >= 0 for spent in cured.seconds.values())
    assert state(case.victim) == before


def test_clipguard_and_retrain_tell_the_same_split_from_one_scan(case):
    one, other = Clipguard(plan=PLAN).defend(case), Retrain(plan=PLAN).defend(case)
    assert one.split is not None
    assert other.split is not None
    assert np.array_equal(one.split.triggered, other.split.triggered)
    assert {"read", "suspect", "detect", "cure"} <= one.seconds.keys()
    assert "retrain" in other.seconds
    assert "cure" not in other.seconds
    assert other.notes["dropped"] == one.split.triggered.sum()
    assert len(list(case.run_dir.iterdir())) == 1


def test_retrain_asks_for_no_victim(case):
    def never() -> Normalized:
        pytest.fail("the victim was trained")

    assert Retrain(plan=PLAN).defend(replace(case, train_victim=never)).split is not None


def test_retrain_learns_from_what_was_not_flagged_by_the_victims_recipe(case):
    cured = Retrain(plan=PLAN).defend(case)
    assert cured.split is not None
    schooling = ClassifierConfig(spec=SPEC, recipe=RECIPE, seed=Seed(5).child("victim"))
    alone, _ = cached_classifier(schooling, DATA, case.cache, ~cured.split.triggered)
    assert state(cured.model) == state(alone)


def test_two_plans_of_one_case_have_folders_of_their_own(case, tmp_path):
    moved = replace(case, run_dir=tmp_path)
    stricter = replace(PLAN, detector=replace(PLAN.detector, triggered=0.99))
    Clipguard(plan=PLAN).defend(moved)
    Clipguard(plan=stricter).defend(moved)
    assert len(list(tmp_path.iterdir())) == 2


@dataclass(frozen=True)
class Shrug:
    """A defence of a user's own."""

    times: int = 1

    def defend(self, case: Case) -> Repaired:
        """Return the victim."""
        return Repaired(model=case.victim, seconds={"shrug": 0.0}, notes={"times": self.times})


def nothing(**options: object) -> object:
    """Return something that is no defence."""
    return options


def test_a_users_own_defence_takes_part_by_import(case):
    made = foreign_defense("test_defenses:Shrug", {"times": 3})
    assert made.defend(case).notes == {"times": 3}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("magic", {}, "unknown defence 'magic': give one of none, clipguard, retrain, finetune"),
        ("no.such.module:thing", {}, "cannot be imported"),
        ("test_defenses:missing", {}, "cannot be imported"),
        ("test_defenses:Shrug", {"often": 1}, "does not take its options"),
        ("test_defenses:nothing", {}, r"has no method defend\(case\)"),
    ],
)
def test_what_is_no_defence_is_refused_in_one_line(name, options, message):
    with pytest.raises(ClipguardError, match=message):
        foreign_defense(name, options)
    if "options" not in message and "method" not in message:
        with pytest.raises(ClipguardError):
            defense_factory(name)


def test_the_defences_load_nothing_that_knows_the_truth():
    code = "import clipguard.defenses, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[1] for name in done.stdout.split() if name.startswith("clipguard.")}
    assert {"defenses", "pipeline"} <= loaded
    assert "lab" not in loaded
