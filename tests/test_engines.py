"""compute.engine, compute.ray_engine: the same bytes whoever runs the shards, and after kills."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipguard.clip.embeddings import ReadingPass, read_source, rows_file
from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.engine import LocalEngine
from clipguard.compute.ray_engine import RayEngine
from clipguard.data import ImageSource
from clipguard.errors import ClipguardError
from clipguard.types import Preprocessing

N, ROWS = 90, 16
GUIDE = ClipGuide("mini")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a folder of images of two classes, two of them broken."""
    root, draw = tmp_path_factory.mktemp("engines") / "data", np.random.default_rng(0)
    for row in range(N):
        file = root / ("cat" if row < 50 else "dog") / f"{row:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (20 + row % 3, 24, 3), dtype=np.uint8)).save(file)
        if row in (3, 70):
            file.write_bytes(b"no image at all")
    return root


def a_pass(data, root, lanes=1):
    (root / "embeddings").mkdir(parents=True, exist_ok=True)
    return ReadingPass(
        source=ImageSource.open(data),
        guide=GUIDE,
        folder=root / "embeddings",
        images=((root / "images", Preprocessing(size=(12, 10))),),
        lanes=lanes,
        shard_rows=ROWS,
    )


def run(data, root, engine, lanes=1):
    read_source(a_pass(data, root, lanes), engine, lambda done, total: None)
    return contents(root)


def contents(root):
    return {
        str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*.*")) if file.is_file()
    }


@pytest.fixture(scope="module")
def expected(data, tmp_path_factory):
    return run(data, tmp_path_factory.mktemp("expected"), LocalEngine())


def test_lanes_change_no_byte(data, expected, tmp_path):
    assert run(data, tmp_path, LocalEngine(), lanes=3) == expected


def test_a_driver_that_is_killed_costs_the_shard_it_was_making(data, expected, tmp_path):
    code = (
        f"import test_engines as t; t.run(t.Path({str(data)!r}), t.Path({str(tmp_path)!r}), t.LocalEngine())"
    )
    draw, before = np.random.default_rng(1), -1
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code], env=environment)
        finished = [rows_file(tmp_path / "embeddings", shard) for shard in range(-(-N // ROWS))]
        wanted = before + 1
        while process.poll() is None and sum(file.exists() for file in finished) <= wanted:
            time.sleep(0.002)
        time.sleep(float(draw.uniform(0, 0.02)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        now = sum(file.exists() for file in finished)
        assert now > before
        before = now
    dates = {file: file.stat().st_mtime_ns for file in finished if file.exists()}
    assert run(data, tmp_path, LocalEngine()) == expected
    assert all(file.stat().st_mtime_ns == date for file, date in dates.items())


@pytest.fixture(scope="module")
def on_ray():
    """Keep one Ray for all tests here: starting it takes seconds."""
    pytest.importorskip("ray")
    from clipguard.compute import ray_engine

    with ray_engine._connected(None):
        yield RayEngine(workers=2)


def test_ray_gives_the_same_bytes_and_goes_on_where_another_engine_was_stopped(
    data, expected, tmp_path, on_ray
):
    half = a_pass(data, tmp_path)
    assert list(LocalEngine().run(half, [[0], [1, 2]])) == [0, 1, 2]
    assert run(data, tmp_path, on_ray) == expected


def test_a_ray_worker_that_is_killed_costs_the_shard_it_was_making(data, expected, tmp_path, on_ray):
    work, killed, finished = a_pass(data, tmp_path), [], []
    for shard in on_ray.run(work, work.units(range(work.count))):
        finished.append(shard)
        if not killed:
            killed = [pid for pid in _actors() if _kill(pid)][:1]
    assert killed
    assert sorted(finished) == list(range(work.count))
    assert run(data, tmp_path, on_ray) == expected


def test_shards_that_a_killed_worker_had_finished_are_left_alone_and_said(data, expected, tmp_path, on_ray):
    assert run(data, tmp_path, LocalEngine()) == expected
    work = a_pass(data, tmp_path)
    assert list(work([])) == []
    assert sorted(on_ray.run(work, [[0, 1], [2]])) == [0, 1, 2]
    assert contents(tmp_path) == expected


def test_a_fault_of_a_ray_worker_ends_the_run_in_one_line(data, tmp_path, on_ray):
    work = a_pass(data, tmp_path)
    stranger = ImageSource.open(data, rows=(0, 80))
    other = ReadingPass(
        **{name: getattr(work, name) for name in ("guide", "folder", "images")}, source=stranger
    )
    object.__setattr__(other.source, "opened", work.source.opened)
    with pytest.raises(ClipguardError, match="all nodes have to see the same files"):
        list(on_ray.run(other, [[0]]))


def test_what_only_this_process_has_is_refused_before_ray_starts(tmp_path):
    images = np.zeros((20, 8, 8, 3), np.uint8)
    source = ImageSource.open((images, np.arange(20) % 2), classes=("cat", "dog"))
    work = ReadingPass(source=source, guide=GUIDE, folder=tmp_path, images=())
    with pytest.raises(ClipguardError, match="in the memory of this process: give a path"):
        list(RayEngine().run(work, [[0]]))


def _actors():
    """Return the process ids of Ray's actors on this machine."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if b"ray::MapWorker" in (entry / "cmdline").read_bytes():
                    yield int(entry.name)
            except OSError:
                continue


def _kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
