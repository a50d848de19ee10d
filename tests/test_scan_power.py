"""A scan with canaries: its outcomes are kept, read back equal, and move nothing else."""

from dataclasses import replace

import pytest

from clipguard.clip.zero_shot import ClipGuide
from clipguard.models.spec import ModelSpec, build, save
from clipguard.pipeline.defender import UNTOUCHED, Defender
from clipguard.pipeline.judging import read_beliefs, read_outcomes
from clipguard.runs import read_json
from clipguard.seeds import Seed
from tiny_runs import CONFIG, poisoned_set, scanned, source_of

SPEC = ModelSpec.sized(architecture="preactresnet18-4", num_classes=3, input_size=(16, 16))


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    return scanned(tmp_path_factory.mktemp("without") / "run", poisoned_set()[0])


@pytest.fixture(scope="module")
def powered(tmp_path_factory):
    """Return the scan with one copy, in which few canaries are enough for a set so small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipguard.pipeline.judging.canary_sets", lambda *_: ({"patch": 12, "blend": 12},))
        folder = tmp_path_factory.mktemp("power") / "run"
        return scanned(folder, poisoned_set()[0], replace(CONFIG, power=1))


def test_the_outcomes_of_a_copy_are_kept_and_read_back_equal(powered):
    path = powered.context.finished["power"].path
    assert {one.family for one in powered.canaries} <= {"patch", "blend"}
    assert {(one.copy, one.samples) for one in powered.canaries} == {(0, 12)}
    assert read_outcomes(path) == powered.canaries
    stored = read_json(path / "canaries.json")
    names = powered.canaries[0].__slots__
    assert stored == [{name: getattr(one, name) for name in names} for one in powered.canaries]


def test_beliefs_are_kept_and_read_back_equal(without):
    assert len(without.beliefs) == 1
    path = without.context.finished["removal"].path
    assert read_beliefs(path) == without.beliefs
    assert [one["label"] for one in read_json(path / "beliefs.json")] == [0]


def test_a_second_scan_reads_the_outcomes_back(powered):
    again = scanned(powered.context.run.path, poisoned_set()[0], replace(CONFIG, power=1))
    assert again.context.finished["power"].cached
    assert again.canaries == powered.canaries


def test_canaries_move_neither_the_partition_nor_a_row(without, powered):
    assert "power" not in without.context.finished
    assert without.canaries == ()
    assert without.partition.flagged.any()
    assert powered.partition.fingerprint == without.partition.fingerprint
    one, other = (scan.context.run.path / "samples.parquet" for scan in (without, powered))
    assert one.read_bytes() == other.read_bytes()


def test_no_canary_is_put_into_a_suspected_class(powered):
    assert 0 not in {one.label for one in powered.canaries}


def test_where_nothing_is_flagged_a_given_model_keeps_every_byte(tmp_path):
    data = poisoned_set(share=0.0)[0]
    given = tmp_path / "victim.safetensors"
    save(build(SPEC, Seed(0)), SPEC, given, data.class_names)
    defender = Defender(ClipGuide("mini"), tmp_path / "run", config=CONFIG).fit(source_of(data), model=given)
    assert not defender.partition_.flagged.any()
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == given.read_bytes()
    assert defender.model_ is defender.before_
    assert (defender.history_, "unlearning" in defender.stages_) == ({}, False)
    assert defender.warnings_[0] == UNTOUCHED
