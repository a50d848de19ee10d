"""Every single step in which the store touches the disk, struck by a full disk or a kill."""

import os
from pathlib import Path

import pytest

from clipguard.errors import ClipguardError
from clipguard.runs import RunFolder
from run_folder_kills import SOURCE, described, full_disks, kills


@pytest.fixture
def swift_disk(monkeypatch):
    """Let nobody wait for the disk: the order of the steps is what is tested, some thousand times."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


EVERY = pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
"""How many steps lie between those that are struck."""


@EVERY
@pytest.mark.usefixtures("swift_disk")
def test_a_full_disk_in_any_step_is_one_line_and_running_again_gives_the_same_bytes(tmp_path, stride):
    blows = list(full_disks(tmp_path, stride))
    assert len(blows) > 40 / stride
    assert [blow.at for blow in blows if not blow.mended] == []
    assert [blow.left for blow in blows if blow.left] == []
    said = [blow.line for blow in blows if blow.line]
    assert all("No space left on device" in line and "free some space" in line for line in said)
    assert not any("\n" in line for line in said)
    # Only a fault in mere tidying passes unseen.
    assert len(blows) - len(said) < len(blows) / 4


@EVERY
@pytest.mark.usefixtures("swift_disk")
def test_a_kill_in_any_step_leaves_what_running_again_completes_to_the_same_bytes(tmp_path, stride):
    blows = list(kills(tmp_path, stride))
    assert len(blows) > 40 / stride
    assert [blow.at for blow in blows if not blow.mended] == []


def test_a_fault_of_the_machine_keeps_what_was_done_but_bad_input_does_not(tmp_path):
    def fails(cause):
        def compute(folder: Path) -> None:
            (folder / "shard.txt").write_text("done")
            raise ClipguardError("the input is gone: bring it back") from cause

        return compute

    for cause, kept in ((FileNotFoundError(2, "gone"), True), (OSError("bad magic"), False), (None, False)):
        run = RunFolder.open(tmp_path / f"run-{kept}-{cause}", SOURCE, {}, seed=0)
        with pytest.raises(ClipguardError, match="bring it back"):
            run.stage(described("early"), fails(cause))
        assert bool(list(run.path.rglob("shard.txt"))) is kept
        assert run.path.exists() is kept
