"""Every hostile input is refused, listed or read as expected; nothing hangs, runs or is left behind."""

import faulthandler
import os
from collections.abc import Iterator

import pytest

from hostile.catalogue import cases, executed, run

CASES = list(cases())
SECONDS = 120


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Kill these tests where one hangs, also deep in a library that never returns to Python."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def test_the_catalogue_holds_at_least_150_distinct_inputs():
    assert len({case.name for case in CASES}) == len(CASES) >= 150


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_input_does_no_harm(case, tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (tmp_path / "input").mkdir()
    outcome, message = run(case, tmp_path / "input")
    assert (outcome, message) == (case.expected, message)
    assert not executed(tmp_path / "input")
    assert os.listdir(work) == []
