"""runs.locks: one holder at a time, also between processes."""

import subprocess
import sys

from clipguard.runs.locks import locked

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
