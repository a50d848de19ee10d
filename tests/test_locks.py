"""runs.locks: one holder at a time, also between processes."""

import subprocess
import sys

import pytest

from clipguard.errors import ClipguardError
from clipguard.runs.locks import LOCK, lock_run, locked

ASK = (
    "import sys; from pathlib import Path; from clipguard.runs.locks import locked\n"
    "with locked(Path(sys.argv[1]), wait=False) as free: print(free)"
)


def free_for_another_process(path) -> str:
    done = subprocess.run([sys.executable, "-c", ASK, str(path)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_another_process_finds_the_lock_taken_while_it_is_held_and_free_after(tmp_path):
    path = tmp_path / "new folder" / ".lock"
    with locked(path) as held:
        assert held
        assert free_for_another_process(path) == "False"
    assert free_for_another_process(path) == "True"


def test_the_block_runs_whether_or_not_the_lock_was_free(tmp_path):
    with locked(tmp_path / ".lock") as first, locked(tmp_path / ".lock", wait=False) as second:
        assert (first, second) == (True, False)


def test_two_run_folders_of_one_process_share_the_lock_until_the_last_is_gone(tmp_path):
    first, second = lock_run(tmp_path), lock_run(tmp_path / "." / "")
    assert first is second
    del first
    assert free_for_another_process(tmp_path / LOCK) == "False"
    del second
    assert free_for_another_process(tmp_path / LOCK) == "True"


def test_a_run_folder_in_use_by_another_is_refused_in_one_line(tmp_path):
    with (
        locked(tmp_path / LOCK),
        pytest.raises(ClipguardError, match="in use by another process: wait for it, or give another"),
    ):
        lock_run(tmp_path)
    assert lock_run(tmp_path).holds(tmp_path)


def test_a_run_folder_that_was_deleted_and_made_anew_is_locked_anew(tmp_path):
    old = lock_run(tmp_path)
    (tmp_path / LOCK).unlink()
    assert not old.holds(tmp_path)
    new = lock_run(tmp_path)
    assert new is not old
    assert free_for_another_process(tmp_path / LOCK) == "False"


def test_a_lock_of_a_process_that_was_killed_is_free(tmp_path):
    code = ASK.replace("print(free)", "print(free, flush=True); sys.stdin.read()")
    command = [sys.executable, "-c", code, str(tmp_path / LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "True\n"
        with locked(tmp_path / LOCK, wait=False) as free:
            assert not free
        other.kill()
    with locked(tmp_path / LOCK, wait=False) as free:
        assert free


def test_importing_clipguard_needs_no_system_that_has_fcntl():
    code = (
        "import sys; sys.modules['fcntl'] = sys.modules['resource'] = None\n"
        "import clipguard.runs.run_folder, clipguard.data.decode, clipguard.data.parquet, clipguard.cli"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
