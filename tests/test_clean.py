"""`clipguard clean`, and used run folders: what is dropped or replaced is told, and the seal stays true."""

import contextlib
import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from clipguard.clip.zero_shot import ClipGuide
from clipguard.outputs.report import write_report
from clipguard.pipeline.defender import Defender
from clipguard.runs import RunFolder, read_json, verify_run
from clipguard.runs.cleaning import CLEANED, clean_run
from clipguard.runs.locks import lock_run
from tiny_data import CommandLine, few_steps, image_folder, tree
from tiny_report import make_run
from tiny_runs import CONFIG


def described_bytes(content):
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


RESULTS = {"flagged.csv", "flagged.txt", "quality.parquet", "samples.parquet", "unreadable.json"}


@pytest.fixture
def clipguard(capsys):
    return CommandLine(capsys)


class Stopped(Exception):  # noqa: N818  # ends a scan that has told what it tells
    """What is to be computed shows: the test needs no more."""


def scan(folder, run, *, stop=True, **changes):
    """Scan a small folder; return the defender and what was told, without a result once a step begins."""
    remarks = []

    def progress(step, done, total):
        if not total:
            remarks.append(step)
        elif stop:
            raise Stopped

    net = replace(CONFIG.early_model, epochs=1)
    detector = replace(CONFIG.trigger_detector, net=replace(net, folds=2))
    config = replace(CONFIG, early_model=net, trigger_detector=detector, **changes)
    made = Defender(ClipGuide("mini"), run, config=config, progress=progress)
    with contextlib.suppress(Stopped):
        made.scan(folder)
    return made, remarks


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """Return a folder of data, and the folder of its finished run."""
    with pytest.MonkeyPatch.context() as patched:
        few_steps(patched)
        root = tmp_path_factory.mktemp("once")
        image_folder(root / "data", 24)
        scan(root / "data", root / "run", stop=False)
        return root / "data", root / "run"


@pytest.fixture
def run(once, tmp_path):
    """Return a copy of the finished run."""
    return Path(shutil.copytree(once[1], tmp_path / "run"))


def test_the_caches_go_the_results_stay_and_every_file_is_still_proved(run, clipguard):
    before = tree(run)
    held = {name: content for name, content in before.items() if name.startswith("stages/")}
    stages = {name.split("/")[1] for name in held}
    value = clipguard("clean", run, "--json").json
    assert value["freed_bytes"] == sum(map(len, held.values())) > 50_000
    assert set(value["stages"]) == stages
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


def test_a_cleaned_run_says_so_when_it_is_resumed_and_computes_all_anew(once, run, monkeypatch):
    few_steps(monkeypatch)
    before = (run / "samples.parquet").read_bytes()
    clean_run(run)
    made, remarks = scan(once[0], run, stop=False)
    assert len(remarks) == 1
    assert " stages) at 20" in remarks[0]
    assert "computed anew" in remarks[0]
    assert not any(stage.cached for stage in made.stages_.values())
    assert (run / "samples.parquet").read_bytes() == before
    assert not (run / CLEANED).exists()
    assert {one.status for one in verify_run(run)} == {"ok"}
    assert scan(once[0], run)[1] == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 9}, f"(seed {CONFIG.seed} -> 9)"),
        ({"size": (24, 24)}, "(size [16, 16] -> [24, 24])"),
        ({}, None),
    ],
)
def test_another_seed_or_setting_is_told_before_anything_is_replaced(once, run, changes, words):
    before = {name: (run / name).read_bytes() for name in RESULTS}
    _, remarks = scan(once[0], run, **changes)
    assert ["holds results of other settings " + words in line for line in remarks] == [True] * len(changes)
    # The remark came first.
    assert {name: (run / name).read_bytes() for name in RESULTS} == before


def test_the_command_line_tells_it_too(once, run, clipguard, monkeypatch):
    few_steps(monkeypatch)
    ran = clipguard("scan", once[0], "-o", run, "--guide", "mini", "--power", "0", "--seed", "5", "--json")
    assert f"clipguard: run folder {run} holds results of other settings (" in ran.err
    assert f"seed {CONFIG.seed} -> 5" in ran.err


def test_an_unfinished_run_has_nothing_to_replace(once, tmp_path):
    scan(once[0], tmp_path / "run")
    assert (tmp_path / "run" / "manifest.json").exists()
    assert scan(once[0], tmp_path / "run", seed=9)[1] == []


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


def test_report_and_verify_say_what_is_gone_and_since_when(once, run, clipguard):
    page = run / "report.html"
    page.write_text("the page with pictures")
    clean_run(run)
    cleaned = read_json(run / CLEANED)
    when, stages = cleaned["cleaned"], cleaned["stages"]
    told = f"({len(stages)} stages) at {when}"
    for arguments, words in (
        (("report", run), "--without-pictures"),
        (("verify", run, "--data", once[0]), "hashes of its inputs"),
    ):
        ran = clipguard(*arguments)
        assert (ran.code, ran.err.count("\n")) == (2, 1)
        assert told in ran.err
        assert words in ran.err
    assert page.read_text() == "the page with pictures"
    page.unlink()
    ran = clipguard("verify", run)
    assert ran.code == 0
    assert f"cleaned: {when}; no longer there to be checked: stages {', '.join(stages)}" in ran.out
    assert clipguard("verify", run, "--json").json["cleaned"] == {"at": when, "stages": [*stages]}
    assert clipguard("verify", once[1], "--json").json["cleaned"] is None


def test_the_page_of_a_cleaned_run_says_that_its_pictures_are_gone(tmp_path, clipguard):
    run = finished(tmp_path)
    write_report(run)
    clean_run(run)
    ran = clipguard("report", run, "--without-pictures", "--json")
    when = read_json(run / CLEANED)["cleaned"]
    assert (ran.code, ran.json["cleaned"]) == (0, when)
    assert "no picture and no reconstructed trigger" in ran.err
    page = (run / "report.html").read_text()
    assert "The pictures are gone:</b> <code>clipguard clean</code> has dropped them, and the" in page
    assert when in page
    assert "data:image/webp" not in page
