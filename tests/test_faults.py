"""Faults of disk, system and power: one line, nothing torn, nothing lost, the same bytes when run again."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clipguard import scoring
from clipguard.cli.progress import Lines
from clipguard.errors import ClipguardError
from clipguard.sources import ImageSource
from clipguard.sources.writer import write_parquet
from clipguard.store import (
    RunFolder,
    SourceInfo,
    read_array,
    read_json,
    resume_folder,
    verify_run,
    write_array,
    write_json,
    write_pieces,
    write_table,
)
from clipguard.types import image_set
from tiny_data import NAMES, CommandLine, few_steps, image_folder, pictures, tree

TOOLS = Path(__file__).parents[1] / "tools"
SOURCE = SourceInfo(kind="folder", location="./images", fingerprint="f1", n=3, class_names=("cat", "dog"))
N = 40
OPEN = Path.open


# ---- every single step of the store, struck once


def work(path: Path) -> None:
    """Do what a run does to the disk: shards, a merge, a table, a stage on top, published copies."""

    def read(folder: Path) -> None:
        parts = [resume_folder(folder) / f"shard-{number}.npy" for number in range(2)]
        for number, part in enumerate(parts):
            if not part.exists():
                write_array(part, np.full((3, 2), number, np.float32))
        pieces = [read_array(part, mmap=True) for part in parts]
        write_pieces(folder / "all.npy", (6, 2), pieces[0].dtype, pieces)
        write_table(folder / "rows.parquet", {"id": ["a", "b"], "label": np.arange(2)})

    run = RunFolder.open(path, SOURCE, {}, seed=0)
    first = run.stage("read", config={}, inputs=["f1"], compute=read)
    last = run.stage(
        "late", config={}, inputs=[first.key], compute=lambda at: write_json(at / "out.json", [1, 2])
    )
    run.publish(last.path / "out.json", "out.json")
    with run.publishing("summary.json") as to:
        write_json(to, {"all": "well"})
    run.close()


def settled(path: Path) -> dict[str, bytes]:
    """Return the files of a run without those that hold times or hashes of them."""
    timed = ("manifest.json", "seal.json")
    return {name: content for name, content in tree(path).items() if not name.endswith(timed)}


def strike(patch: pytest.MonkeyPatch, at: int, blow) -> list[int]:
    """Let `blow` happen just before the step number `at` of those that touch the disk; return their count."""
    steps = [0]

    def guarded(original):
        def step(*arguments, **options):
            if original is OPEN and not {"w", "wb"} & {*arguments[1:], *options.values()}:
                return original(*arguments, **options)
            steps[0] += 1
            if steps[0] == at:
                blow()
            return original(*arguments, **options)

        return step

    for where, names in (
        (os, ("fsync",)),
        (shutil, ("copyfile", "rmtree")),
        (Path, ("replace", "rename", "mkdir", "unlink", "write_text", "open")),
    ):
        for name in names:
            patch.setattr(where, name, guarded(getattr(where, name)))
    return steps


@pytest.fixture
def swift_disk(monkeypatch):
    """Let nobody wait for the disk: the order of the steps is what is tested, some thousand times."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


EVERY = pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
"""How many steps lie between those that are struck."""


def full_disk() -> None:
    raise OSError(28, "No space left on device")


def refusal(path: Path, at: int) -> str:
    """Return what the work says when its step number `at` meets a full disk, nothing if it gets through."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            strike(patch, at, full_disk)
            work(path)
    except ClipguardError as error:
        return str(error)
    return ""


@EVERY
@pytest.mark.usefixtures("swift_disk")
def test_a_full_disk_in_any_step_is_one_line_and_running_again_gives_the_same_bytes(tmp_path, stride):
    work(tmp_path / "whole")
    wanted = settled(tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        counted = strike(patch, -1, full_disk)
        work(tmp_path / "counted")
    steps = counted[0]
    assert steps > 40
    silent = 0
    for at in range(1, steps + 1, stride):
        path = tmp_path / f"run-{at}"
        line = refusal(path, at)
        silent += not line
        assert not line or ("No space left on device" in line and "free some space" in line), at
        assert "\n" not in line
        assert not list(path.glob("*.part"))
        work(path)
        assert settled(path) == wanted, at
        assert {check.status for check in verify_run(path)} == {"ok"}, at
    # Only a fault in mere tidying passes unseen.
    assert silent < steps / stride / 4


def killed_in_a_child(path: Path, at: int) -> bool:
    """Return whether a child process that does the work was killed in its step number `at`."""
    child = os.fork()
    if child == 0:
        try:
            with pytest.MonkeyPatch.context() as patch:
                strike(patch, at, lambda: os.kill(os.getpid(), signal.SIGKILL))
                work(path)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@EVERY
@pytest.mark.usefixtures("swift_disk")
def test_a_kill_in_any_step_leaves_what_running_again_completes_to_the_same_bytes(tmp_path, stride):
    work(tmp_path / "whole")
    wanted, at = settled(tmp_path / "whole"), 1
    while killed_in_a_child(tmp_path / f"run-{at}", at):
        path = tmp_path / f"run-{at}"
        # Also while the first kill is being made good.
        killed_in_a_child(path, max(1, at // 2))
        work(path)
        assert settled(path) == wanted, at
        assert {check.status for check in verify_run(path)} == {"ok"}, at
        at += stride
    assert at > 40


def test_a_fault_of_the_machine_keeps_what_was_done_but_bad_input_does_not(tmp_path):
    def fails(cause):
        def compute(folder: Path) -> None:
            (folder / "shard.txt").write_text("done")
            raise ClipguardError("the input is gone: bring it back") from cause

        return compute

    for cause, kept in ((FileNotFoundError(2, "gone"), True), (OSError("bad magic"), False), (None, False)):
        run = RunFolder.open(tmp_path / f"run-{kept}-{cause}", SOURCE, {}, seed=0)
        with pytest.raises(ClipguardError, match="bring it back"):
            run.stage("read", config={}, inputs=[], compute=fails(cause))
        assert bool(list(run.path.rglob("shard.txt"))) is kept
        assert run.path.exists() is kept


# ---- real faults under the command line


@pytest.fixture
def clipguard(capsys, monkeypatch):
    few_steps(monkeypatch)
    return CommandLine(capsys)


@pytest.fixture
def data(tmp_path):
    return image_folder(tmp_path / "data", n=N)


@pytest.fixture
def scanned(clipguard, data, tmp_path):
    """Return what scans the data into a run folder, and checks the line of one that must fail."""

    def scan(run, says=None):
        ran = clipguard("scan", data, "-o", run, "--guide", "mini")
        if says is not None:
            line = ran.err.splitlines()[-1]
            assert (ran.code, ran.out) == (2, "")
            assert line.startswith("clipguard: ")
            assert says in line
            assert "Traceback" not in ran.err
        else:
            assert ran.code == 3, ran.err
        return ran

    return scan


def published(run: Path) -> dict[str, bytes]:
    """Return the bytes of what a scan found."""
    names = ("samples.parquet", "stages/read/images.npy", "stages/read/embeddings.npy")
    return {name: (run / name).read_bytes() for name in (*names, "stages/suspect/logits.npy")}


@contextlib.contextmanager
def small_disk(place: Path, kilobytes: int):
    """Give a file system of that size, and what changes its options."""
    place.mkdir()

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")

    mount(f"size={kilobytes}k")
    try:
        yield lambda options: mount(f"remount,{options}")
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(not shutil.which("mount") or os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_disk_that_is_really_full_and_then_read_only(clipguard, scanned, tmp_path):
    scanned(tmp_path / "whole")
    with small_disk(tmp_path / "disk", 60) as remount:
        run = tmp_path / "disk/run"
        for kilobytes in (60, 120, 180):
            remount(f"size={kilobytes}k")
            scanned(run, says="No space left on device")
            torn = [f for f in run.rglob("*.part") if f.is_file() and "stages" not in f.parts]
            assert not torn
        remount("size=8m")
        scanned(run)
        assert published(run) == published(tmp_path / "whole")
        remount("ro")
        before = tree(run)
        scanned(run, says="Read-only file system")
        assert clipguard("verify", run).code == 0
        assert clipguard("report", run).code == 2
        assert tree(run) == before


def test_a_limit_on_file_sizes_is_one_line_and_lifting_it_resumes(scanned, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        scanned(tmp_path / "run", says="File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    scanned(tmp_path / "run")
    scanned(tmp_path / "whole")
    assert published(tmp_path / "run") == published(tmp_path / "whole")


def test_an_image_removed_while_scanning_is_skipped_and_told(clipguard, scanned, data, tmp_path, monkeypatch):
    def remove_one(source: ImageSource) -> tuple[int, int]:
        (data / "cat/0000.png").unlink()
        return (16, 16)

    monkeypatch.setattr("clipguard.pipeline.thumbnail_size", remove_one)
    ran = scanned(tmp_path / "run")
    assert "1 images could not be read and were skipped, first 'cat/0000.png'" in ran.err
    (entry,) = read_json(tmp_path / "run/stages/read/unreadable.json")
    assert entry == {"id": "cat/0000.png", "reason": "No such file or directory"}
    checked = clipguard("verify", tmp_path / "run", "--data", data, "--json")
    assert checked.json["counts"]["inputs"] == {"ok": N - 1, "missing": 1}


def test_a_parquet_file_removed_while_scanning_costs_no_finished_shard(clipguard, tmp_path, monkeypatch):
    file, aside = tmp_path / "data.parquet", tmp_path / "aside"
    write_parquet(image_set(pictures(N), np.arange(N) % 2, NAMES), file)
    monkeypatch.setattr(scoring, "SHARD", 16)
    shards, real = [], scoring._write_shard

    def removing(source, rows, *rest):
        shards.append(rows.start)
        if shards == [0, 16]:
            file.rename(aside)
        real(source, rows, *rest)

    monkeypatch.setattr(scoring, "_write_shard", removing)
    command = ("scan", file, "-o", tmp_path / "run", "--guide", "mini")
    ran = clipguard(*command)
    assert (ran.code, ran.out) == (2, "")
    assert str(file) in ran.err.splitlines()[-1]
    aside.rename(file)
    assert clipguard(*command).code == 3
    assert shards == [0, 16, 16, 32]


def test_a_folder_in_which_another_process_works_is_left_to_it(scanned, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    code = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'w'), fcntl.LOCK_EX); print('held'); input()"
    command = [sys.executable, "-u", "-c", code, str(run / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        scanned(run, says="in use by another process: wait for it, or give another folder")
        other.communicate("\n")
    scanned(run)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_in_one_line_and_the_same_command_resumes(
    clipguard, scanned, data, tmp_path, monkeypatch, number, code
):
    before = signal.getsignal(signal.SIGTERM)
    told, real = [], Lines.__call__

    def signalled(lines, stage, done, total):
        told.append(stage)
        if stage == "detect":
            os.kill(os.getpid(), number)
        real(lines, stage, done, total)

    with monkeypatch.context() as patch:
        patch.setattr(Lines, "__call__", signalled)
        ran = clipguard("scan", data, "-o", tmp_path / "run", "--guide", "mini")
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.splitlines()[-1].endswith("the same command resumes where it stopped")
    assert signal.getsignal(signal.SIGTERM) is before
    heard = []
    with monkeypatch.context() as patch:
        patch.setattr(Lines, "__call__", lambda lines, stage, done, total: heard.append(stage))
        scanned(tmp_path / "run")
    assert set(heard) == {"detect"}
    scanned(tmp_path / "whole")
    assert published(tmp_path / "run") == published(tmp_path / "whole")


@pytest.fixture
def torture(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import kill_torture

    yield kill_torture
    scoring.SHARD = 1024


@pytest.mark.slow
def test_random_kills_change_no_byte(torture, tmp_path):
    found = torture.torture(tmp_path, rounds=3, seed=0, limit=120)
    assert found["rounds"] == found["identical"] == found["verified"] == 3
    assert found["kills"] > 3


def test_a_round_of_kills_that_lost_something_would_be_seen(torture, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/a.bin").write_bytes(b"1")
    one = torture.settled(tmp_path / "run")
    (tmp_path / "run/a.bin").write_bytes(b"2")
    assert torture.settled(tmp_path / "run") != one
