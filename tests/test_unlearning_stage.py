"""pipeline.unlearning_stage: how a model is repaired, when it is left alone, and what is said of it."""

from dataclasses import replace

import numpy as np
import pytest

from clipguard.compute.training import cross_entropy, fit
from clipguard.models.header import read_class_names
from clipguard.models.spec import ModelSpec, build
from clipguard.pipeline import unlearning_stage
from clipguard.pipeline.repair import repair
from clipguard.runs import read_json, read_table
from clipguard.seeds import Seed
from clipguard.types import State
from tiny_runs import CONFIG, NAMES, configured, moved, poisoned_set, scanned

SPEC = ModelSpec.sized(architecture="preactresnet18-4", num_classes=3, input_size=(16, 16))


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return scanned(tmp_path_factory.mktemp("scan") / "run", poisoned_set()[0])


@pytest.fixture(scope="module")
def victim(result):
    model, data = build(SPEC, Seed(3)), result.data
    recipe = replace(CONFIG.victim, epochs=4, lr=0.05)
    fit(model, data.images, np.arange(len(data)), cross_entropy(data.labels.copy()), recipe, Seed(0))
    return model


def repaired(result, victim, path, **settings):
    config = replace(CONFIG, unlearning=replace(CONFIG.unlearning, **settings))
    return repair(configured(moved(result, path), config), victim, SPEC, "origin")


def test_where_nothing_is_flagged_there_is_nothing_to_unlearn(result, victim, tmp_path):
    flagged = np.flatnonzero(result.partition.flagged)
    assert len(flagged)
    clean = replace(result, partition=result.partition.moved(flagged, State.UNCERTAIN))
    assert repaired(clean, victim, tmp_path / "run") is None
    assert not (tmp_path / "run" / "stages" / "unlearning").exists()


def test_the_stage_lists_its_trials_and_what_they_were_measured_on(result, victim, tmp_path):
    stage = repaired(result, victim, tmp_path / "run")
    found = read_json(stage.path / "repair.json")
    assert found["optimizer"] == "sgd"
    assert found["rate"] == found["trials"][-1]["rate"]
    clean = result.data.labels[result.partition.clean]
    spared = sum(int(0.1 * count) for count in np.bincount(clean))
    assert [reading["n"] for reading in found["readings"]] == [spared, spared]
    assert spared > 3
    assert read_class_names(stage.path / "model.safetensors") == NAMES
    history = read_table(stage.path / "history.parquet")
    assert list(history["epoch"]) == [1, 2]
    assert history["clean"][0] == result.partition.clean.sum() - spared
    assert history["flagged"][0] == result.partition.flagged.sum()


def test_a_rate_that_is_given_is_taken_without_trials(result, victim, tmp_path):
    stage = repaired(result, victim, tmp_path / "run", rate=0.003)
    found = read_json(stage.path / "repair.json")
    assert (found["rate"], found["trials"]) == (0.003, [])


def test_a_repair_ends_when_its_work_is_done(result, victim, tmp_path, monkeypatch):
    monkeypatch.setattr(unlearning_stage, "has_done_its_work", lambda before, now: True)
    stage = repaired(result, victim, tmp_path / "run")
    assert read_table(stage.path / "history.parquet")["epoch"].tolist() == [1.0]
