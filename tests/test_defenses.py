"""defenses: what is given, what comes back, and what may take part."""

import copy
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.classifiers import ClassifierConfig, cached_classifier, train_classifier
from clipguard.compute.training import Recipe
from clipguard.defenses import DEFENSES, Case, Defense, Repaired, controls, defense_factory, foreign_defense
from clipguard.defenses.clipguard import Clipguard, fitted, scanned
from clipguard.defenses.controls import Finetune, NoDefense, Retrain
from clipguard.errors import ClipguardError
from clipguard.models.spec import ModelSpec, Normalized
from clipguard.seeds import Seed
from clipguard.types import State
from tiny_runs import CONFIG, poisoned_set

DATA, _ = poisoned_set()
SPEC = ModelSpec.sized(architecture="shallow-4", num_classes=3, input_size=(16, 16))
RECIPE = Recipe(epochs=2, lr=0.05, batch_size=16, crop=0.0, flip=False)
CLASSIFIER = ClassifierConfig(spec=SPEC, recipe=RECIPE, seed=Seed(CONFIG.seed).child("victim"))


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder: Path = tmp_path_factory.mktemp("case")
    victim, _ = cached_classifier(CLASSIFIER, DATA, folder)
    return Case(
        data=DATA,
        train_victim=lambda: copy.deepcopy(victim),
        train_on=lambda keep: cached_classifier(CLASSIFIER, DATA, folder, keep),
        spec=SPEC,
        recipe=RECIPE,
        guide=ClipGuide("mini"),
        # Of which the scan of the tests flags what carries the trigger.
        seed=CONFIG.seed,
        run_dir=folder / "work",
    )


def state(model: torch.nn.Module) -> list[bytes]:
    return [value.numpy().tobytes() for value in model.state_dict().values()]


def test_every_defence_in_the_list_keeps_the_protocol():
    assert all(isinstance(make(), Defense) for make in DEFENSES.values())


def test_no_defence_gives_the_victim_back_and_every_other_leaves_it_as_it_was(case):
    before = state(case.victim)
    undefended = NoDefense().defend(case)
    assert state(undefended.model) == before
    assert undefended.seconds == {}
    for defense in (Clipguard(config=CONFIG), Retrain(config=CONFIG), Finetune(config=CONFIG)):
        repaired = defense.defend(case)
        assert state(repaired.model) != before, defense
        assert repaired.seconds, defense
    assert state(case.victim) == before


def test_clipguard_and_retrain_give_the_same_partition_from_one_scan(case):
    one, other = Clipguard(config=CONFIG).defend(case), Retrain(config=CONFIG).defend(case)
    assert one.partition is not None
    assert other.partition is not None
    assert one.partition.fingerprint == other.partition.fingerprint
    assert one.entropy_map is not None
    assert len(one.entropy_map.guide_nll) == len(DATA)
    scan = (
        "embeddings",
        "images",
        "early_model",
        "label_flow",
        "trigger_detector",
        "removal",
        "trigger_inversion",
        "samples",
    )
    assert tuple(one.seconds) == (*scan, "unlearning")
    assert tuple(other.seconds) == (*scan, "retraining")
    assert {name: one.seconds[name] for name in scan} == {name: other.seconds[name] for name in scan}
    found = scanned(case, CONFIG).verdict_.findings
    assert one.notes["flagged"] == one.partition.flagged.sum()
    assert one.notes["suspicious_classes"] == len(found)
    assert one.notes.get("suspicious_class") == (found[0].label if found else None)
    assert one.notes.get("at_least") == (found[0].at_least if found else None)
    dropped = one.partition.has(State.TRIGGER, State.LABEL, State.EXCLUDED)
    assert other.notes == {"dropped": dropped.sum()}
    assert dropped.any()
    assert len(list(case.run_dir.iterdir())) == 1


def test_no_sample_is_held_out_of_a_victim_that_is_given(case):
    partition = Clipguard(config=CONFIG).defend(case).partition
    assert partition is not None
    assert not partition.has(State.HELD_OUT).any()


def test_retrain_needs_no_victim(case):
    def never() -> Normalized:
        pytest.fail("the victim was trained")

    assert Retrain(config=CONFIG).defend(replace(case, train_victim=never)).partition is not None


def test_retrain_learns_from_what_was_not_flagged_by_the_victims_recipe(case):
    repaired = Retrain(config=CONFIG).defend(case)
    assert repaired.partition is not None
    kept = repaired.partition.has(State.CLEAN, State.UNCERTAIN)
    alone, _ = train_classifier(CLASSIFIER, DATA, np.flatnonzero(kept))
    everything, _ = train_classifier(CLASSIFIER, DATA, np.arange(len(DATA)))
    assert state(repaired.model) == state(alone) != state(everything)


def test_finetuning_takes_as_many_samples_a_pass_as_unlearning_did(case, monkeypatch):
    sizes, real = [], controls.fit

    def recorded(model, images, choose, *rest):
        def counted(epoch):
            rows = choose(epoch)
            sizes.append(len(set(rows.tolist())))
            return rows

        return real(model, images, counted, *rest)

    monkeypatch.setattr(controls, "fit", recorded)
    Finetune(config=CONFIG).defend(case)
    history = fitted(case, CONFIG).history_
    assert sizes == (history["clean"] + history["flagged"]).tolist()


def test_progress_is_passed_on(case, tmp_path):
    titles = set()
    progress = replace(case, run_dir=tmp_path, progress=lambda title, done, total: titles.add(title))
    Clipguard(config=CONFIG).defend(progress)
    assert {"train the early-training model", "unlearn the flagged samples"} <= titles


def test_the_seed_of_a_defence_is_that_of_its_case(case, tmp_path):
    elsewhere = replace(case, run_dir=tmp_path)
    one, other = (Clipguard(config=replace(CONFIG, seed=seed)).defend(elsewhere) for seed in (1, 2))
    assert state(one.model) == state(other.model)
    assert len(list(tmp_path.iterdir())) == 1


def test_two_configurations_of_one_case_have_folders_of_their_own(case, tmp_path):
    elsewhere = replace(case, run_dir=tmp_path)
    stricter = replace(CONFIG, trigger_detector=replace(CONFIG.trigger_detector, flagged=0.99))
    Clipguard(config=CONFIG).defend(elsewhere)
    Clipguard(config=stricter).defend(elsewhere)
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
