"""`clipguard clean`, and used run folders: what is dropped or replaced is told, and the seal stays true."""

import hashlib
import re
from dataclasses import replace

import pytest

from clipguard.clip.zero_shot import ClipGuide
from clipguard.errors import ClipguardError
from clipguard.pipeline.defender import Defender
from clipguard.runs import RunFolder, read_json, verify_run
from clipguard.runs.cleaning import CLEANED, clean_run
from clipguard.runs.locks import lock_run
from tiny_data import CommandLine, few_steps, image_folder, tree
from tiny_report import make_run
from tiny_runs import CONFIG


def described_bytes(content):
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


RESULTS = {"flagged.csv", "flagged.txt", "samples.parquet", "unreadable.json"}


@pytest.fixture
def clipguard(capsys):
    return CommandLine(capsys)


@pytest.fixture
def scanned(tmp_path, monkeypatch):
    """Return what scans a small folder into one run folder, with what was told meanwhile."""
    few_steps(monkeypatch)
    folder = image_folder(tmp_path / "data", 24)

    def scan(**changes):
        remarks = []
        net = replace(CONFIG.early_model, epochs=1)
        detector = replace(CONFIG.trigger_detector, net=replace(net, folds=2))
        config = replace(CONFIG, early_model=net, trigger_detector=detector, **changes)
        guide = ClipGuide("mini")
        made = Defender(guide, tmp_path / "run", config=config, progress=lambda *step: remarks.append(step))
        made.scan(folder)
        return made, [step for step, _, total in remarks if not total]

    return scan


def test_the_caches_go_the_results_stay_and_every_file_is_still_proved(scanned, clipguard, tmp_path):
    made, _ = scanned()
    run = tmp_path / "run"
    before, stages = tree(run), list(made.stages_)
    held = {name: content for name, content in before.items() if name.startswith("stages/")}
    value = clipguard("clean", run, "--json").json
    assert value["freed_bytes"] == sum(map(len, held.values())) > 100_000
    assert sorted(value["stages"]) == sorted(stages)
    assert set(value["kept"]) == RESULTS
    after = tree(run)
    assert not any(name.startswith("stages/") for name in after)
    for name in (*RESULTS, "manifest.json"):
        assert after[name] == before[name]
    assert {one.path: one.status for one in verify_run(run)} == dict.fromkeys(
        [CLEANED, "manifest.json", *RESULTS], "ok"
    )
    noted = read_json(run / CLEANED)["stages"]
    assert noted == {name: described_bytes(held[f"stages/{name}/manifest.json"]) for name in stages}


def test_a_cleaned_run_says_so_when_it_is_resumed_and_computes_all_anew(scanned, tmp_path):
    first, remarks = scanned()
    assert remarks == []
    clean_run(tmp_path / "run")
    again, remarks = scanned()
    assert [line for line in remarks if "were dropped at 20" in line] == remarks
    assert len(remarks) == 1
    assert not any(stage.cached for stage in again.stages_.values())
    assert {name: stage.key for name, stage in again.stages_.items()} == {
        name: stage.key for name, stage in first.stages_.items()
    }
    assert not (tmp_path / "run" / CLEANED).exists()
    assert {one.status for one in verify_run(tmp_path / "run")} == {"ok"}
    assert scanned()[1] == []


def test_another_seed_or_setting_is_told_before_anything_is_replaced(scanned, tmp_path):
    scanned()
    assert scanned()[1] == []
    _, remarks = scanned(seed=9)
    assert len(remarks) == 1
    assert re.search(r"holds results of other settings \(seed 2 -> 9\): they are replaced", remarks[0])
    _, remarks = scanned(seed=9, size=(24, 24))
    assert "size [16, 16] -> [24, 24]" in remarks[0]
    # The results in the folder are now those.
    assert scanned(seed=9, size=(24, 24))[1] == []


def test_an_unfinished_run_has_nothing_to_replace(scanned, tmp_path, monkeypatch):
    def fails(*_):
        raise ClipguardError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr("clipguard.pipeline.scanning.SIGNALS", (fails,))
        with pytest.raises(ClipguardError, match="stopped"):
            scanned()
    assert scanned(seed=9)[1] == []


def test_what_a_killed_run_left_goes_too(tmp_path, clipguard):
    run = finished(tmp_path)
    part = run / "stages" / ".victim-123456789012.part"
    part.mkdir()
    (part / "checkpoint").write_bytes(b"x" * 1000)
    killed = run / "stages.part"
    killed.mkdir()
    (killed / "old").write_bytes(b"y" * 500)
    freed = clipguard("clean", run, "--json").json["freed_bytes"]
    assert freed > 1500
    assert not part.exists()
    assert not killed.exists()
    assert clipguard("clean", run, "--json").json["freed_bytes"] == 0


def finished(tmp_path):
    """Return a run whose published table is sealed."""
    run = make_run(tmp_path / "run")
    folder = RunFolder.read(run)
    with folder.publishing("samples.parquet"):
        pass
    return run


def test_a_run_without_results_and_no_run_are_refused_and_stay(tmp_path, clipguard):
    run = make_run(tmp_path / "run")
    (tmp_path / "other").mkdir()
    before = tree(tmp_path)
    for path, words in ((run, "has no results"), (tmp_path / "other", "no run folder")):
        ran = clipguard("clean", path)
        assert (ran.code, ran.err.count("\n")) == (2, 1)
        assert words in ran.err
    assert tree(tmp_path) == before


def test_a_person_reads_what_was_freed_and_the_new_seal(tmp_path, clipguard):
    out = clipguard("clean", finished(tmp_path)).out
    assert "MB freed: the caches of 2 stages" in out
    assert "kept: samples.parquet" in out
    assert lock_run(tmp_path / "run").holds(tmp_path / "run")
