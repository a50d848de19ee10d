"""benchmarks/scale.py, floors.py, threads.py and process_tree.py at a tiny size, each as it is called."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from clipguard.clip.zero_shot import ClipGuide
from clipguard.data import ImageSource
from clipguard.data.decode import common_size, read_images
from clipguard.types import Preprocessing

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="what a process costs is in /proc")


def ran(script: str, *arguments: object) -> str:
    """Return what a script has printed."""
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(autouse=True)
def benchmarks_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize("kind", ["png", "ppm"])
def test_the_data_are_shards_of_readable_images_with_unique_ids(tmp_path, kind):
    ran("scale.py", "make", tmp_path, "--rows", 500, "--classes", 4, "--shard-rows", 200, "--format", kind)
    assert len(list(tmp_path.iterdir())) == 3
    source = ImageSource.open(tmp_path)
    assert (len(source), len(set(source.ids)), len(source.class_names)) == (500, 500, 4)
    data, unreadable = read_images(source, Preprocessing(size=common_size(source)))
    assert not unreadable
    patched = (data.pixels[:, -3:, -3:] == 255).all((1, 2, 3))
    assert 1 <= patched.sum() <= 20
    assert not data.labels[patched].any()
    means = np.stack([data.pixels[(data.labels == label) & ~patched].mean((0, 1, 2)) for label in range(4)])
    assert len(np.unique(means.round(), axis=0)) == 4


def test_the_stub_is_a_guide_and_always_the_same(tmp_path):
    from scale import guide

    for name in ("one", "two"):
        guide(Namespace(folder=tmp_path / name, seed=0))
    guides = [ClipGuide(f"local-dir:{tmp_path / name}") for name in ("one", "two")]
    assert guides[0].clip.fingerprint == guides[1].clip.fingerprint
    embedding = guides[0].clip.embed_images([np.zeros((32, 32, 3), np.uint8)])
    assert embedding.shape == (1, 64)
    assert guides[0].class_embeddings(("red", "green")).shape == (2, 64)


def test_memory_time_and_reading_of_a_child_process_count(tmp_path):
    from process_tree import measured

    file = tmp_path / "file"
    file.write_bytes(bytes(1 << 20))
    inner = "import time; held = bytearray(b'x') * (200 << 20); time.sleep(2)"
    outer = (
        "import subprocess, sys, time\n"
        f"open({str(file)!r}, 'rb').read()\n"
        f"subprocess.run([sys.executable, '-c', {inner!r}])\n"
        "began = time.process_time()\n"
        "while time.process_time() - began < 0.5: pass\n"
        "sys.exit(7)"
    )
    calls: list[int] = []
    cost = measured([sys.executable, "-c", outer], phase=lambda: len(calls) > 5, each=lambda: calls.append(1))
    assert cost.code == 7
    assert cost.tree > 200 << 20 > 100 << 20 > cost.main
    assert cost.cpu > 0.5
    assert cost.read_from_anywhere >= 1 << 20
    assert cost.processes == 2
    assert list(cost.phases) == [False, True]


def test_a_trace_counts_only_the_bytes_of_the_source(tmp_path):
    from scale import read_bytes

    shard = tmp_path / "train-00000-of-00001.parquet"
    trace = tmp_path / "trace"
    trace.write_text(
        f'12 pread64(3<{shard}>, ""..., 100, 0) = 100\n'
        f'12 read(3<{shard}>, ""..., 4096) = 7\n'
        f"12 read(3<{shard}>, 0x7f, 4096) = -1 EIO (Input/output error)\n"
        '12 read(4</etc/hosts>, ""..., 4096) = 9\n'
    )
    assert read_bytes(trace, [shard]) == 107


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--short",)], ids=["whole", "short"])
def test_a_scan_is_measured(tmp_path, options):
    ran("scale.py", "make", tmp_path / "data", "--rows", 300, "--classes", 3, "--group-rows", 100)
    ran("scale.py", "guide", tmp_path / "guide")
    places = ("--guide", tmp_path / "guide", "--out", tmp_path / "run")
    report = json.loads(ran("scale.py", "run", tmp_path / "data", *places, *options))
    assert (report["rows"], report["classes"]) == (300, 3)
    assert report["peak_anon_all"] >= report["peak_anon_main"] > 50e6
    assert report["cpu_seconds"] > 1
    assert report["passes_estimated"] >= 1
    assert "embeddings" in report["stages"]
    assert set(report["peak_anon_by_stage"]) <= {*report["stages"], "outputs"}


@pytest.mark.slow
def test_floors_and_pass_are_compared(tmp_path):
    ran("scale.py", "make", tmp_path / "data", "--rows", 100, "--classes", 2)
    ran(
        "floors.py",
        "photographs",
        tmp_path / "data" / "train-00000-of-00001.parquet",
        tmp_path / "large",
        "--count",
        20,
    )
    sizes = common_size(ImageSource.open(tmp_path / "large"))
    assert sizes.common == (500, 500)
    report = json.loads(ran("floors.py", "run", tmp_path / "large", "--repeats", 1, "--cores", 2))
    assert report["rows"] == 20
    assert report["best"] in report["forward_images_per_second"]
    assert min(report["medians"].values()) > 0


@pytest.mark.slow
def test_arrangements_of_threads_are_compared(tmp_path):
    options = ("--count", 32, "--repeats", 1, "--threads", 2, "--work", "guide", "shallow-32")
    printed = ran("threads.py", "compare", tmp_path / "threads.json", *options)
    rows = json.loads((tmp_path / "threads.json").read_text())["rows"]
    assert len(rows) == 2 * 2 * 4
    assert all(row["images_per_second"] > 0 for row in rows)
    assert len(printed.strip().splitlines()) == 2 + 4
