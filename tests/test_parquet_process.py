"""data.parquet_sandbox: what kills the worker that reads a file costs that file, no more."""

import os
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from clipguard.data import ImageSource
from clipguard.data.parquet_file import list_shard, read_cells
from clipguard.data.parquet_sandbox import ROLE, sandboxed_cells, sandboxed_shard
from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits
from clipguard.safety.sandbox import Role, idle_workers
from hostile.tables import PARQUET, whole_table

PRELUDE = """
import os, signal, sys, time
sys.path[:] = sys.argv[2:]
from clipguard.data import parquet_sandbox as worker
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
def list_shard(path, name, limits, columns):
    fault(name)
    return listing(path, name, limits, columns)
def read_cells(path, name, rows, limits, columns):
    for number, item in enumerate(reading(path, name, rows, limits, columns)):
        if number == 3:
            fault(name)
        yield item
worker.list_shard, worker.read_cells = list_shard, read_cells
"""
FAULTY = Role("Parquet reader", PRELUDE + "worker.main(sys.argv[1])")
ABSENT = Role("Parquet reader", "raise SystemExit(3)")
SHORT = Limits(seconds=0.3)


@pytest.fixture
def table(tmp_path):
    (tmp_path / "x.parquet").write_bytes(whole_table())
    return tmp_path / "x.parquet"


def refused(path, name, limits=SHORT, role=FAULTY):
    """Return the lines of a listing and of a reading."""
    lines = []
    for read in (
        lambda: sandboxed_shard(path, name, limits, role),
        lambda: list(sandboxed_cells(path, name, np.arange(12), limits, role)),
    ):
        with pytest.raises(ClipguardError) as caught:
            read()
        lines.append(str(caught.value))
    return lines


def test_both_ways_read_the_same(table):
    near, far = list_shard(table, "x", Limits()), sandboxed_shard(table, "x", Limits())
    assert np.array_equal(near.labels, far.labels)
    assert (near.paths, near.names) == (far.paths, far.names)
    rows = np.array([0, 3, 4, 11])
    assert list(sandboxed_cells(table, "x", rows, Limits())) == list(read_cells(table, "x", rows, Limits()))


def test_both_ways_give_the_same_reason_for_a_cell_that_is_too_large(table):
    limits, rows = Limits(file_bytes=10), np.arange(3)
    reasons = list(read_cells(table, "x", rows, limits))
    assert all("more than the limit of 10" in failed.reason for failed in reasons)
    assert list(sandboxed_cells(table, "x", rows, limits)) == reasons


@pytest.mark.parametrize("kind", sorted(PARQUET))
def test_both_ways_say_the_same_of_a_damaged_file(tmp_path, kind):
    path = tmp_path / "x.parquet"
    path.write_bytes(PARQUET[kind][1]())
    outcomes = []
    for limits in (Limits(isolated=False), Limits()):
        try:
            source = ImageSource.open(path, classes=("cat", "dog"), limits=limits)
            outcomes.append([str(item) for item in source.read(range(len(source)))])
        except ClipguardError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    ("name", "reason", "limits"),
    [
        ("crash", "Parquet reader crashed (SIGSEGV)", Limits()),
        ("spin", "took longer than 0.3 s of processor time", SHORT),
        ("swell", "Parquet reader crashed (exit code 1)", Limits()),
    ],
)
def test_what_the_process_dies_of_is_one_line(table, name, reason, limits):
    for line in refused(table, name, limits):
        assert line == f"{name} cannot be read as Parquet: {reason}: do not use it"


def test_a_process_that_sleeps_is_stopped_by_the_clock(table, monkeypatch):
    monkeypatch.setattr("clipguard.safety.sandbox.PATIENCE", 1)
    with pytest.raises(ClipguardError, match=r"took longer than 0\.3 s by the clock"):
        list(sandboxed_cells(table, "sleep", np.arange(12), SHORT, FAULTY))


def test_what_a_library_prints_disturbs_nothing(table):
    shard = sandboxed_shard(table, "noise", SHORT, FAULTY)
    assert np.array_equal(shard.labels, list_shard(table, "x", SHORT).labels)
    assert len(list(sandboxed_cells(table, "noise", np.arange(12), SHORT, FAULTY))) == 12


LISTED = "{'type': 'Listed', 'labels': bytes(8), 'paths': None, 'names': None, **%s}"


@pytest.mark.parametrize(
    "lie",
    [
        "bytes(range(1, 255)) * 9",
        "LENGTH.pack(1 << 60)",
        "_framed(Cell(b'x'))",
        "_framed({'type': 'Fault', 'text': 3, 'errno': 0})",
        *(
            f"_framed({LISTED % change}) + _framed(End())"
            for change in (
                "{'paths': 55}",
                "{'labels': bytes(7)}",
                "{'names': [None]}",
                "{'paths': ['a', 'b']}",
                "{'paths': [5]}",
                "{'other': None}",
            )
        ),
        "_framed({'type': 'Listed', 'labels': bytes(8)})",
        "_framed([])",
        "_framed(None)",
        "_framed(Raw(b'\\x91' * 100_000))",
    ],
)
def test_a_process_that_has_been_taken_over_is_not_believed(table, lie):
    code = (
        "import os, sys; sys.path[:] = sys.argv[2:]; from msgspec import Raw; "
        "from clipguard.data.parquet_sandbox import Cell; "
        "from clipguard.safety.sandbox import HANDSHAKE, LENGTH, End, _framed; "
        f"os.write(1, HANDSHAKE + {lie}); import time; time.sleep(1000)"
    )
    liar = Role("Parquet reader", code)
    with pytest.raises(ClipguardError, match="Parquet reader: protocol error"):
        sandboxed_shard(table, "x", Limits(), liar)


def test_a_process_that_falls_silent_but_lives_is_not_waited_for(table, monkeypatch):
    monkeypatch.setattr("clipguard.safety.sandbox.PATIENCE", 1)
    code = "import os, time; os.write(1, b'clipguard'); os.close(0); os.close(1); time.sleep(1000)"
    silent = Role("Parquet reader", code)
    with pytest.raises(ClipguardError, match="Parquet reader: protocol error"):
        sandboxed_shard(table, "x", SHORT, silent)


def test_a_process_that_cannot_start_is_no_fault_of_the_file(table):
    for line in refused(table, "x", role=ABSENT):
        assert line.startswith("a worker for the Parquet reader cannot be started")


def test_a_lost_file_differs_from_a_bad_one_by_its_cause(tmp_path):
    with pytest.raises(ClipguardError, match="No such file") as caught:
        sandboxed_shard(tmp_path / "gone.parquet", "gone", Limits())
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1PAR1")
    with pytest.raises(ClipguardError, match="cannot be read as Parquet") as caught:
        sandboxed_shard(tmp_path / "bad.parquet", "bad", Limits())
    assert caught.value.__cause__ is None


def test_one_process_serves_one_request_after_another_wherever_this_one_stands(table, monkeypatch):
    limits = Limits(seconds=9.0)
    sandboxed_shard(table, "x", limits)
    (kept,) = idle_workers(ROLE, limits)
    pid = kept.process.pid
    monkeypatch.chdir(table.parent)
    assert len(list(sandboxed_cells(Path("x.parquet"), "x", np.arange(12), limits))) == 12
    with pytest.raises(ClipguardError):
        sandboxed_shard(table.parent / "gone", "gone", limits)
    assert [reader.process.pid for reader in idle_workers(ROLE, limits)] == [pid]
    # One that has more to say than anybody listens to is of no further use.
    with closing(sandboxed_cells(table, "x", np.arange(12), limits)) as items:
        next(items)
    assert not idle_workers(ROLE, limits)
    for _ in range(100):
        if not os.path.exists(f"/proc/{pid}"):
            break
        time.sleep(0.02)
    assert not os.path.exists(f"/proc/{pid}")
