"""Real faults under the command line: one line, nothing torn or lost, the same bytes when run again."""

import contextlib
import functools
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clipguard.cli import main
from clipguard.clip import embeddings
from clipguard.clip.loading import load_clip
from clipguard.data import ImageSource
from clipguard.data.decode import decoder
from clipguard.data.writer import write_parquet
from clipguard.outputs.progress import Lines
from clipguard.pipeline.stages import POWER, QUALITY, TRIGGER_DETECTOR
from clipguard.runs import read_json
from clipguard.types import image_set
from tiny_data import NAMES, CommandLine, few_steps, image_folder, pictures, tree

TOOLS = Path(__file__).parents[1] / "tools"
N = 40


LOAD = functools.cache(load_clip)


def made_quick(patch: pytest.MonkeyPatch) -> None:
    """Load the guide once for all and train for a few steps: neither is what is tested here."""
    few_steps(patch)
    patch.setattr("clipguard.clip.zero_shot.load_clip", LOAD)


@pytest.fixture
def clipguard(capsys, monkeypatch):
    made_quick(monkeypatch)
    return CommandLine(capsys)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return what a scan that nothing disturbs finds, whichever folder the same images lie in."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        made_quick(patch)
        data = image_folder(root / "data", n=N)
        assert main(["scan", str(data), "-o", str(root / "run"), "--guide", "mini"]) == 3
    return published(root / "run")


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
    names = (
        "samples.parquet",
        "stages/images/images_000000.npy",
        "stages/embeddings/img_emb/img_emb_000000.npy",
    )
    return {name: (run / name).read_bytes() for name in (*names, "stages/early_model/early_nll.npy")}


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
def test_a_disk_that_is_really_full_and_then_read_only(clipguard, scanned, whole, tmp_path):
    with small_disk(tmp_path / "disk", 60) as remount:
        run = tmp_path / "disk/run"
        for kilobytes in (60, 120, 180):
            remount(f"size={kilobytes}k")
            scanned(run, says="No space left on device")
            torn = [f for f in run.rglob("*.part") if f.is_file() and "stages" not in f.parts]
            assert not torn
        remount("size=8m")
        scanned(run)
        assert published(run) == whole
        remount("ro")
        before = tree(run)
        scanned(run, says="Read-only file system")
        assert clipguard("verify", run).code == 0
        assert clipguard("report", run).code == 2
        assert tree(run) == before


def test_a_limit_on_file_sizes_is_one_line_and_lifting_it_resumes(scanned, whole, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        scanned(tmp_path / "run", says="File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    scanned(tmp_path / "run")
    assert published(tmp_path / "run") == whole


def test_an_image_removed_while_scanning_is_skipped_and_reported(
    clipguard, scanned, data, tmp_path, monkeypatch
):
    def remove_one(source: ImageSource) -> tuple[int, int]:
        (data / "cat/0000.png").unlink()
        return 16, 16

    monkeypatch.setattr("clipguard.pipeline.defender.common_size", remove_one)
    ran = scanned(tmp_path / "run")
    assert "1 images could not be read and were skipped, first 'cat/0000.png'" in ran.err
    (entry,) = read_json(tmp_path / "run/stages/embeddings/unreadable.json")
    assert entry == {"id": "cat/0000.png", "reason": "No such file or directory"}
    checked = clipguard("verify", tmp_path / "run", "--data", data, "--json")
    assert checked.json["counts"]["inputs"] == {"ok": N - 1, "missing": 1}


def test_a_parquet_file_removed_while_scanning_costs_no_finished_shard(clipguard, tmp_path, monkeypatch):
    data, aside = tmp_path / "data", tmp_path / "aside"
    data.mkdir()
    files = [data / f"train-{number:05d}-of-00002.parquet" for number in range(2)]
    for file in files:
        write_parquet(image_set(pictures(N), np.arange(N) % 2, NAMES), file)
    # Few rows are fetched ahead, so that some shards of the first file are finished when the other is missed.
    monkeypatch.setattr(embeddings, "SHARD", 8)
    monkeypatch.setattr(decoder, "BATCH_ITEMS", 4)
    monkeypatch.setattr(decoder, "MOST_WORKERS", 2)
    recorded, real = [], embeddings.record_rows

    def recording(file, *rest):
        recorded.append(file.stem)
        real(file, *rest)

    def remove_one(source: ImageSource) -> tuple[int, int]:
        files[1].rename(aside)
        return 16, 16

    monkeypatch.setattr(embeddings, "record_rows", recording)
    command = ("scan", data, "-o", tmp_path / "run", "--guide", "mini")
    with monkeypatch.context() as patch:
        patch.setattr("clipguard.pipeline.defender.common_size", remove_one)
        ran = clipguard(*command)
    assert (ran.code, ran.out) == (2, "")
    assert str(files[1]) in ran.err.splitlines()[-1]
    assert 0 < len(recorded) <= N / 8
    aside.rename(files[1])
    assert clipguard(*command).code == 3
    assert recorded == [f"rows_{shard:06d}" for shard in range(2 * N // 8)]


def test_a_folder_in_which_another_process_works_is_left_to_it(scanned, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held'); input()"
    )
    command = [sys.executable, "-u", "-c", code, str(run / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        scanned(run, says="in use by another process: wait for it, or give another folder")
        other.communicate("\n")
    scanned(run)


def test_a_run_folder_inside_the_images_is_refused(scanned, data):
    before = tree(data)
    scanned(data / "run", says="lies inside the data")
    assert tree(data) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_in_one_line_and_the_same_command_resumes(
    clipguard, scanned, whole, data, tmp_path, monkeypatch, number, code
):
    # Whoever started the tests in the background may have switched Ctrl-C off.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.getsignal(signal.SIGTERM)
    real = Lines.__call__

    def signalled(lines, title, done, total):
        if title == TRIGGER_DETECTOR.title:
            os.kill(os.getpid(), number)
        real(lines, title, done, total)

    with monkeypatch.context() as patch:
        patch.setattr(Lines, "__call__", signalled)
        ran = clipguard("scan", data, "-o", tmp_path / "run", "--guide", "mini")
    signal.signal(signal.SIGINT, interrupt)
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.splitlines()[-1].endswith("the same command resumes where it stopped")
    assert signal.getsignal(signal.SIGTERM) is before
    titles = set()
    with monkeypatch.context() as patch:
        patch.setattr(Lines, "__call__", lambda lines, title, done, total: titles.add(title))
        scanned(tmp_path / "run")
    assert titles == {TRIGGER_DETECTOR.title, QUALITY.title, POWER.title}
    assert published(tmp_path / "run") == whole


@pytest.fixture
def torture(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import kill_torture

    yield kill_torture
    embeddings.SHARD = 1024


@pytest.mark.slow
def test_random_kills_change_no_byte(torture, tmp_path):
    counts = torture.torture(tmp_path, rounds=3, seed=0, limit=120)
    assert counts["rounds"] == counts["identical"] == counts["verified"] == 3
    assert counts["kills"] > 3


def test_a_round_of_kills_that_lost_something_would_be_seen(torture, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/a.bin").write_bytes(b"1")
    one = torture.settled(tmp_path / "run")
    (tmp_path / "run/a.bin").write_bytes(b"2")
    assert torture.settled(tmp_path / "run") != one
