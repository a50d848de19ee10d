import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from clipguard.errors import ClipguardError
from clipguard.runs import Arithmetic, DescribedStage, RunFolder, SourceInfo, read_json, write_json
from clipguard.runs.seal import sealed


def source(key: str = "f1") -> SourceInfo:
    return SourceInfo(kind="folder", location="./images", key=key, n=3, class_names=("cat", "dog"))


def open_run(path: Path, key: str = "f1", config: dict | None = None) -> RunFolder:
    return RunFolder.open(path, source(key), config or {"epochs": 5}, seed=0)


class Counted:
    """A compute that writes one file and counts how often it was really called."""

    def __init__(self, text: str = "result") -> None:
        self.calls, self.text = 0, text

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "out.txt").write_text(self.text)


def described(name: str = "early_model", config: dict | None = None, inputs=("f1",), **others):
    described = {"version": 1, "config": config or {"epochs": 5}, "inputs": inputs, **others}
    return DescribedStage(name=name, **described)


def run_stage(run: RunFolder, compute, name: str = "early_model", config: dict | None = None, inputs=("f1",)):
    return run.stage(described(name, config=config or {"epochs": 5}, inputs=inputs), compute)


# ---- the cache of stages


def test_a_stage_with_the_same_settings_and_inputs_is_not_computed_again(tmp_path):
    compute = Counted()
    first = run_stage(open_run(tmp_path / "run"), compute)
    second = run_stage(open_run(tmp_path / "run"), compute)
    assert compute.calls == 1
    assert not first.cached
    assert second.cached
    assert (second.path, second.key, second.seconds) == (first.path, first.key, first.seconds)
    assert (second.path / "out.txt").read_text() == "result"


@pytest.mark.parametrize(
    ("config", "inputs"), [({"epochs": 6}, ("f1",)), ({"epochs": 5}, ("f2",)), ({"epochs": 5}, ("f1", "f1"))]
)
def test_a_changed_setting_or_input_computes_again_and_replaces_the_older_stage(tmp_path, config, inputs):
    run = open_run(tmp_path / "run")
    first = run_stage(run, Counted("old"))
    second = run_stage(run, Counted("new"), config=config, inputs=inputs)
    assert not second.cached
    assert second.key != first.key
    assert (second.path / "out.txt").read_text() == "new"
    assert [entry.name for entry in (tmp_path / "run/stages").iterdir()] == ["early_model"]


def test_another_version_of_the_code_another_device_or_where_it_counts_thread_count_computes_again(tmp_path):
    path = tmp_path / "run"
    first = run_stage(open_run(path), Counted("old"))
    newer = open_run(path).stage(described(version=2), Counted("new"))
    assert (newer.cached, newer.key != first.key) == (False, True)
    assert (newer.path / "out.txt").read_text() == "new"
    threaded = RunFolder.open(path, source(), {"epochs": 5}, seed=0, arithmetic=Arithmetic(threads=2))
    same = threaded.stage(described(version=2), Counted("two"))
    assert (same.cached, same.key) == (True, newer.key)
    other = threaded.stage(described(version=2, threaded=True), Counted("two"))
    assert (other.cached, other.key != newer.key) == (False, True)
    assert read_json(path / "manifest.json")["threads"] == 2
    assert read_json(other.path / "manifest.json")["version"] == 2
    gpu = Arithmetic(threads=2, device="A GPU, float16")
    elsewhere = RunFolder.open(path, source(), {"epochs": 5}, seed=0, arithmetic=gpu)
    moved = elsewhere.stage(described(version=2), Counted("moved"))
    assert moved.key not in (newer.key, other.key)
    assert read_json(path / "manifest.json")["device"] == "A GPU, float16"


def test_the_precision_of_trainings_counts_only_where_a_large_net_is_trained(tmp_path):
    path, halved = tmp_path / "run", Arithmetic(trained_in="bfloat16")
    exact = open_run(path)
    half = RunFolder.open(path, source(), {"epochs": 5}, seed=0, arithmetic=halved)
    assert half.key(described()) == exact.key(described())
    assert half.key(described(threaded=True)) != exact.key(described(threaded=True))
    assert read_json(run_stage(half, Counted()).path.parents[1] / "manifest.json")["trained_in"] == "bfloat16"


def test_a_run_folder_of_another_format_is_refused_in_one_line_and_left_as_it_is(tmp_path):
    run_stage(open_run(tmp_path / "run"), Counted())
    manifest = read_json(tmp_path / "run/manifest.json")
    write_json(tmp_path / "run/manifest.json", manifest | {"format": 1})
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for attempt in (open_run, RunFolder.read):
        with pytest.raises(
            ClipguardError, match=r"^run folder .* another version of clipguard: use a new one$"
        ):
            attempt(tmp_path / "run")
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}


def test_the_order_of_settings_does_not_matter_but_the_name_of_the_stage_does(tmp_path):
    run = open_run(tmp_path / "run")
    one = run_stage(run, Counted(), "a", {"x": 1, "y": 2})
    same = run_stage(run, Counted(), "a", {"y": 2, "x": 1})
    other = run_stage(run, Counted(), "b", {"x": 1, "y": 2})
    assert same.cached
    assert one.key != other.key


@pytest.mark.parametrize("damage", ["shorter", "flipped", "missing", "torn manifest", "no manifest"])
def test_a_damaged_stage_is_computed_again(tmp_path, damage):
    run = open_run(tmp_path / "run")
    stage = run_stage(run, Counted())
    out, manifest = stage.path / "out.txt", stage.path / "manifest.json"
    if damage == "shorter":
        out.write_text("resul")
    elif damage == "flipped":
        out.write_text("Result")
    elif damage == "missing":
        out.unlink()
    elif damage == "torn manifest":
        manifest.write_text(manifest.read_text()[:40])
    else:
        manifest.unlink()
    compute = Counted()
    again = run_stage(run, compute)
    assert (compute.calls, again.cached) == (1, False)
    assert (again.path / "out.txt").read_text() == "result"


def test_files_in_sub_folders_are_hashed_and_unfinished_files_are_dropped(tmp_path):
    def compute(folder: Path) -> None:
        (folder / "shards").mkdir()
        (folder / "shards/0.txt").write_text("zero")
        (folder / "shards/1.txt.part").write_text("torn")

    stage = run_stage(open_run(tmp_path / "run"), compute)
    assert list(read_json(stage.path / "manifest.json")["files"]) == ["shards/0.txt"]
    assert not (stage.path / "shards/1.txt.part").exists()


KILLED = """
    import os, signal, sys, time
    from pathlib import Path
    from clipguard.runs import Arithmetic, DescribedStage, RunFolder, SourceInfo
    source = SourceInfo(kind="folder", location="./images", key="f1", n=3, class_names=("cat", "dog"))
    def compute(folder):
        (folder / "shard0.txt").write_text("by the killed process")
        time.sleep(0.05)
        (folder / "shard1.txt.part").write_text("to")
        os.kill(os.getpid(), signal.SIGKILL)
    run = RunFolder.open(Path(sys.argv[1]), source, {"epochs": 5}, seed=0)
    stage = DescribedStage(name="early_model", version=1, config={"epochs": 5}, inputs=["f1"])
    run.stage(stage, compute)
"""


def test_a_stage_killed_half_way_is_never_read_and_resumes_from_its_shards(tmp_path):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "run")], check=False)
    assert done.returncode == -signal.SIGKILL
    run = open_run(tmp_path / "run")
    assert run.finished("early_model") is None
    found = []

    def resume(folder: Path) -> None:
        found.extend(sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".")))
        (folder / "shard1.txt").write_text("by the second process")

    stage = run_stage(run, resume)
    assert found == ["shard0.txt", "shard1.txt.part"]
    assert sorted(read_json(stage.path / "manifest.json")["files"]) == ["shard0.txt", "shard1.txt"]
    assert (stage.path / "shard0.txt").read_text() == "by the killed process"
    assert stage.seconds >= 0.04  # the killed attempt counts, up to its last file
    assert run.finished("early_model") is not None


def test_a_killed_stage_does_not_resume_under_other_settings_and_its_rest_is_swept(tmp_path):
    subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "run")], check=False)
    seen = []
    run_stage(
        open_run(tmp_path / "run"),
        lambda folder: seen.extend(entry.name for entry in folder.iterdir()),
        config={"epochs": 6},
    )
    assert seen == [".started"]
    assert [entry.name for entry in (tmp_path / "run/stages").iterdir()] == ["early_model"]


def test_a_kill_between_manifest_and_rename_loses_nothing(tmp_path):
    run = open_run(tmp_path / "run")
    stage = run_stage(run, Counted())
    stage.path.rename(stage.path.with_name(f".early_model-{stage.key[:12]}.part"))
    compute = Counted()
    assert run_stage(run, compute).path == stage.path
    assert compute.calls == 0


# ---- the run folder


def test_opening_writes_nothing(tmp_path):
    open_run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bad_input_in_the_first_stage_leaves_no_run_folder(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise ClipguardError("no images")

    with pytest.raises(ClipguardError, match="no images"):
        run_stage(open_run(tmp_path / "run"), fail)
    assert not (tmp_path / "run").exists()


def test_bad_input_in_a_later_stage_keeps_the_stages_before_it(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise ClipguardError("no guide")

    run = open_run(tmp_path / "run")
    run_stage(run, Counted(), "read")
    with pytest.raises(ClipguardError, match="no guide"):
        run_stage(run, fail, "guide")
    assert [entry.name for entry in (tmp_path / "run/stages").iterdir()] == ["read"]


def test_a_crash_keeps_what_was_written_for_the_next_attempt(tmp_path):
    def crash(folder: Path) -> None:
        (folder / "shard0.txt").write_text("zero")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        run_stage(open_run(tmp_path / "run"), crash)
    stage = run_stage(open_run(tmp_path / "run"), Counted())
    assert (stage.path / "shard0.txt").read_text() == "zero"


def test_a_run_folder_of_other_data_is_refused_and_left_alone(tmp_path):
    run_stage(open_run(tmp_path / "run"), Counted())
    before = (tmp_path / "run/manifest.json").read_bytes()
    with pytest.raises(ClipguardError, match=r"belongs to other data \(./images\)"):
        open_run(tmp_path / "run", key="f2")
    assert (tmp_path / "run/manifest.json").read_bytes() == before


def test_other_data_is_refused_even_if_its_run_was_made_after_opening(tmp_path):
    late = open_run(tmp_path / "run", key="f2")
    run_stage(open_run(tmp_path / "run"), Counted())
    with pytest.raises(ClipguardError, match="belongs to other data"):
        run_stage(late, Counted())
    assert read_json(tmp_path / "run/manifest.json")["source"]["key"] == "f1"


def test_a_run_folder_whose_name_is_no_utf8_is_refused(tmp_path):
    with pytest.raises(ClipguardError, match="no UTF-8"):
        open_run(tmp_path / "r\udcff")
    assert not list(tmp_path.iterdir())


def test_a_folder_with_other_things_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(ClipguardError, match="not empty and no run folder"):
        open_run(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ClipguardError, match="is a file"):
        open_run(tmp_path / "thesis.txt")


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ClipguardError, match="cannot be written"):
        run_stage(open_run(tmp_path / "file/run"), Counted())


@pytest.mark.parametrize("text", ["", "{", '{"format": 1}', "[]", '{"format": 1, "source": 3}', "\x00"])
def test_a_damaged_manifest_is_one_clear_error(tmp_path, text):
    run_stage(open_run(tmp_path / "run"), Counted())
    (tmp_path / "run/manifest.json").write_text(text)
    for attempt in (open_run, RunFolder.read):
        with pytest.raises(ClipguardError) as caught:
            attempt(tmp_path / "run")
        assert "manifest.json" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_reading_needs_a_run_folder(tmp_path):
    with pytest.raises(ClipguardError, match="no run folder"):
        RunFolder.read(tmp_path)
    run_stage(open_run(tmp_path / "run"), Counted())
    assert RunFolder.read(tmp_path / "run").finished("early_model").key


def test_reopening_keeps_the_date_and_records_the_new_settings(tmp_path):
    run_stage(open_run(tmp_path / "run"), Counted())
    manifest = read_json(tmp_path / "run/manifest.json")
    write_json(tmp_path / "run/manifest.json", manifest | {"created": "2001-01-01T00:00:00+00:00"})
    run_stage(open_run(tmp_path / "run", config={"epochs": 9}), Counted())
    again = read_json(tmp_path / "run/manifest.json")
    assert again["created"] == "2001-01-01T00:00:00+00:00"
    assert again["config"] == {"epochs": 9}
    assert again["source"]["class_names"] == ["cat", "dog"]
    assert again["versions"]["numpy"] == np.__version__


LOCKED = """
    import sys
    from pathlib import Path
    from clipguard.errors import ClipguardError
    from clipguard.runs import Arithmetic, DescribedStage, RunFolder, SourceInfo
    source = SourceInfo(kind="folder", location="./images", key="f1", n=3, class_names=("cat", "dog"))
    run = RunFolder.open(Path(sys.argv[1]), source, {"epochs": 5}, seed=0)
    try:
        stage = DescribedStage(name="guide", version=1, config={}, inputs=[])
        run.stage(stage, lambda folder: None)
    except ClipguardError as error:
        print(error)
"""


def test_two_processes_cannot_work_in_one_run_folder_but_two_objects_of_one_process_can(tmp_path):
    def other_process() -> str:
        command = [sys.executable, "-c", textwrap.dedent(LOCKED), str(tmp_path / "run")]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    run = open_run(tmp_path / "run")
    run_stage(run, Counted())
    second = open_run(tmp_path / "run")
    assert run_stage(second, Counted()).cached
    del run
    assert "in use by another process" in other_process()
    del second
    assert other_process() == ""


def test_a_run_folder_deleted_meanwhile_is_made_anew(tmp_path):
    first = open_run(tmp_path / "run")
    run_stage(first, Counted())
    shutil.rmtree(tmp_path / "run")
    assert not run_stage(open_run(tmp_path / "run"), Counted()).cached


def test_publishing_replaces_the_copy_and_leaves_the_stage_untouched_by_edits(tmp_path):
    run = open_run(tmp_path / "run")
    stage = run_stage(run, Counted())
    run.publish(stage.path / "out.txt", "result.txt").write_text("edited by the user")
    assert (stage.path / "out.txt").read_text() == "result"
    assert run.publish(stage.path / "out.txt", "result.txt").read_text() == "result"
    assert not list((tmp_path / "run").glob("*.part"))


def test_what_is_retracted_is_gone_from_the_folder_and_from_its_seal(tmp_path):
    run = open_run(tmp_path / "run")
    stage = run_stage(run, Counted())
    run.publish(stage.path / "out.txt", "result.txt")
    assert "result.txt" in sealed(run.path)
    run.retract("result.txt")
    assert not (run.path / "result.txt").exists()
    assert "result.txt" not in sealed(run.path)
    assert (stage.path / "out.txt").exists()
    run.retract("result.txt")


def test_the_store_starts_without_torch():
    code = "import sys, clipguard.runs; print('torch' in sys.modules, 'pyarrow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"]
