"""Every single step in which the store touches the disk, struck by a full disk or a kill."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from clipguard.errors import ClipguardError
from clipguard.store import (
    RunFolder,
    SourceInfo,
    read_array,
    resume_folder,
    verify_run,
    write_array,
    write_json,
    write_pieces,
    write_table,
)
from tiny_data import tree

SOURCE = SourceInfo(kind="folder", location="./images", fingerprint="f1", n=3, class_names=("cat", "dog"))
OPEN = Path.open


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
