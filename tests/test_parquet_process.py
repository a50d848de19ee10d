"""data.parquet_process: what kills the process that reads a file costs that file, no more."""

import os
import time
from contextlib import closing

import numpy as np
import pytest

from clipguard.data import ImageSource, parquet_process
from clipguard.data.parquet_file import list_shard, read_cells
from clipguard.data.parquet_process import COMMAND, _pool, asked_for_cells, asked_for_shard
from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits
from hostile.tables import PARQUET, whole_table

PRELUDE = """
import os, signal, sys, time
sys.path[:] = sys.argv[2:]
from clipguard.data import parquet_worker as worker
def fault(what):
    if 'crash' in what:
        os.kill(os.getpid(), signal.SIGSEGV)
    while 'spin' in what:
        pass
    if 'sleep' in what:
        time.sleep(1000)
    if 'swell' in what:
        bytearray(1 << 40)
    if 'noise' in what:
        print('noise', flush=True); os.write(1, b'noise')
listing, reading = worker.list_shard, worker.read_cells
def list_shard(path, shown, limits):
    fault(shown)
    return listing(path, shown, limits)
def read_cells(path, shown, wanted, limits):
    for number, item in enumerate(reading(path, shown, wanted, limits)):
        if number == 3:
            fault(shown)
        yield item
worker.list_shard, worker.read_cells = list_shard, read_cells
"""
FAULTY = (*COMMAND[:-1], PRELUDE + "worker.main(sys.argv[1])")
ABSENT = (*COMMAND[:-1], "raise SystemExit(3)")
SHORT = Limits(seconds=0.3)


@pytest.fixture
def table(tmp_path):
    (tmp_path / "x.parquet").write_bytes(whole_table())
    return tmp_path / "x.parquet"


def refused(path, shown, limits=SHORT, command=FAULTY):
    """Return the lines of a listing and of a reading."""
    lines = []
    for ask in (
        lambda: asked_for_shard(path, shown, limits, command),
        lambda: list(asked_for_cells(path, shown, np.arange(12), limits, command)),
    ):
        with pytest.raises(ClipguardError) as caught:
            ask()
        lines.append(str(caught.value))
    return lines


def test_both_ways_read_the_same(table):
    near, far = list_shard(table, "x", Limits()), asked_for_shard(table, "x", Limits())
    assert np.array_equal(near.labels, far.labels)
    assert (near.paths, near.names) == (far.paths, far.names)
    rows = np.array([0, 3, 4, 11])
    assert list(asked_for_cells(table, "x", rows, Limits())) == list(read_cells(table, "x", rows, Limits()))


@pytest.mark.parametrize("kind", sorted(PARQUET))
def test_both_ways_say_the_same_of_a_damaged_file(tmp_path, kind):
    path = tmp_path / "x.parquet"
    path.write_bytes(PARQUET[kind][1]())
    told = []
    for limits in (Limits(isolated=False), Limits()):
        try:
            source = ImageSource.open(path, classes=("cat", "dog"), limits=limits)
            told.append([str(item) for item in source.read(range(len(source)))])
        except ClipguardError as error:
            told.append(str(error))
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("shown", "says", "limits"),
    [
        ("crash", "Parquet reader crashed (SIGSEGV)", Limits()),
        ("spin", "took longer than 0.3 s of processor time", SHORT),
        ("swell", "Parquet reader crashed (exit code 1)", Limits()),
    ],
)
def test_what_the_process_dies_of_is_one_line(table, shown, says, limits):
    for line in refused(table, shown, limits):
        assert line == f"{shown} cannot be read as Parquet: {says}: do not use it"


def test_a_process_that_sleeps_is_stopped_by_the_clock(table, monkeypatch):
    monkeypatch.setattr("clipguard.safety.sandbox.PATIENCE", 1)
    with pytest.raises(ClipguardError, match=r"took longer than 0\.3 s by the clock"):
        list(asked_for_cells(table, "sleep", np.arange(12), SHORT, FAULTY))


def test_what_a_library_prints_disturbs_nothing(table):
    found = asked_for_shard(table, "noise", SHORT, FAULTY)
    assert np.array_equal(found.labels, list_shard(table, "x", SHORT).labels)
    assert len(list(asked_for_cells(table, "noise", np.arange(12), SHORT, FAULTY))) == 12


FRAMES = "from clipguard.data.parquet_worker import *; import os; os.write(1, b'clipguard'); "


@pytest.mark.parametrize(
    "lie",
    [
        "os.write(1, bytes(range(1, 255)) * 9)",
        "os.write(1, FRAME.pack(CELL, 1 << 60))",
        "os.write(1, FRAME.pack(FAULT, 2) + b'{}')",
        "os.write(1, FRAME.pack(FAULT, 1) + b'{')",
        'os.write(1, FRAME.pack(FAULT, 25) + b\'{"errno": [], "text": ""}  \')',
        "os.write(1, FRAME.pack(LABELS, 8) + b'12345678' + FRAME.pack(REST, 25) "
        '+ b\'{"paths": 55,"names":null}\' + FRAME.pack(DONE, 0))',
        "os.write(1, FRAME.pack(LABELS, 7) + b'1234567' + FRAME.pack(REST, 28) "
        '+ b\'{"paths":null,"names":null}\\n\' + FRAME.pack(DONE, 0))',
    ],
    ids=["noise", "huge", "no fault", "no JSON", "no number", "no paths", "no labels"],
)
def test_a_process_that_has_been_taken_over_is_not_believed(table, lie):
    liar = (*COMMAND[:-1], "import sys; sys.path[:] = sys.argv[2:]; " + FRAMES + lie)
    assert "Parquet reader answers nonsense" in refused(table, "x", SHORT, liar)[0]


def test_a_process_that_falls_silent_but_lives_is_not_waited_for(table, monkeypatch):
    monkeypatch.setattr("clipguard.safety.sandbox.PATIENCE", 1)
    silent = (*COMMAND[:-1], "import os, time; os.write(1, b'clipguard'); os.close(1); time.sleep(1000)")
    with pytest.raises(ClipguardError, match="Parquet reader answers nonsense"):
        asked_for_shard(table, "x", SHORT, silent)


def test_a_process_that_cannot_start_is_no_fault_of_the_file(table):
    for line in refused(table, "x", command=ABSENT):
        assert line.startswith("a process for the Parquet reader cannot be started")


def test_a_lost_file_is_told_from_a_bad_one_by_its_cause(tmp_path):
    with pytest.raises(ClipguardError, match="No such file") as caught:
        asked_for_shard(tmp_path / "gone.parquet", "gone", Limits())
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1PAR1")
    with pytest.raises(ClipguardError, match="cannot be read as Parquet") as caught:
        asked_for_shard(tmp_path / "bad.parquet", "bad", Limits())
    assert caught.value.__cause__ is None


def test_one_process_serves_one_request_after_another_wherever_this_one_stands(table, monkeypatch):
    limits = Limits(seconds=9.0)
    asked_for_shard(table, "x", limits)
    (kept,) = _pool(limits, COMMAND)
    pid = kept.process.pid
    monkeypatch.chdir(table.parent)
    assert len(list(asked_for_cells(parquet_process.Path("x.parquet"), "x", np.arange(12), limits))) == 12
    with pytest.raises(ClipguardError):
        asked_for_shard(table.parent / "gone", "gone", limits)
    assert [reader.process.pid for reader in _pool(limits, COMMAND)] == [pid]
    # One that has more to say than anybody listens to is of no further use.
    with closing(asked_for_cells(table, "x", np.arange(12), limits)) as items:
        next(items)
    assert not _pool(limits, COMMAND)
    for _ in range(100):
        if not os.path.exists(f"/proc/{pid}"):
            break
        time.sleep(0.02)
    assert not os.path.exists(f"/proc/{pid}")
