"""data.decode.decoder: what kills a decoding worker costs one image, and nothing else changes."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipguard.data import Failed, ImageSource
from clipguard.data.decode import Decoder, decode
from clipguard.data.decode.decoder import ROLE
from clipguard.data.listing import Item
from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits
from clipguard.safety.sandbox import Role, idle_workers
from hostile_workers import ABSENT, FAULTY, LIAR

SHARED = Path(__file__).parents[2] / "shared" / "data"
QUICK = Limits(seconds=0.4)


def png(seed: int, size: tuple[int, int] = (5, 4)) -> bytes:
    """Return a PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def results(items: list[Item], role: Role = FAULTY, limits: Limits = QUICK) -> list:
    """Return what workers of this role make of the items."""
    return list(Decoder(limits, role).results("pixels", items))


def same(decoded: list, items: list[Item], bad: dict[int, str]) -> None:
    """Check that `bad` rows have such reasons and all others the pixels of this very process."""
    assert len(decoded) == len(items)
    for row, (result, item) in enumerate(zip(decoded, items, strict=True)):
        if row in bad:
            assert isinstance(result, str)
            assert bad[row] in result
        else:
            assert np.array_equal(result, decode(item))


def test_pixels_are_those_of_this_process_to_the_bit_and_in_order():
    items: list[Item] = [png(seed, (3 + seed % 5, 4)) for seed in range(200)]
    items[70] = np.zeros((2, 3), np.uint8)
    items[71] = Failed("gone")
    items[72] = b"no image"
    same(results(items, ROLE, Limits()), items, {71: "gone", 72: "not an image"})


def test_real_images_are_the_same_to_the_bit():
    if not (SHARED / "imagenette-80").exists():
        pytest.skip("shared data set imagenette-80 is missing")
    source = ImageSource.open(SHARED / "imagenette-80" / "test.parquet", rows=(0, 150))
    items = list(source.read(range(150)))
    same(results(items, ROLE, Limits()), items, {})


def test_an_image_larger_than_any_pipe_comes_through():
    items = [png(0, (700, 900)), png(1, (900, 700))]
    same(results(items, ROLE, Limits()), items, {})


@pytest.mark.parametrize(
    ("begin", "reason"),
    [
        (b"crash", "decoder crashed (SIGSEGV)"),
        (b"exit", "decoder crashed (exit code 7)"),
        (b"spin", "took longer than 0.4 s of processor time"),
        (b"swell", "more memory"),
    ],
)
def test_one_image_that_ends_its_process_is_listed_and_its_neighbours_are_decoded(begin, reason):
    items: list[Item] = [png(seed) for seed in range(70)]
    items[3] = begin + png(3)
    same(results(items), items, {3: reason} if begin != b"swell" else {3: ""})


def test_a_process_that_sleeps_is_stopped_by_the_clock():
    limits = Limits(seconds=0.3)
    items = [png(0), b"sleep", png(2)]
    same(results(items, FAULTY, limits), items, {1: "by the clock"})


def test_an_image_that_only_the_memory_of_another_damaged_is_decoded_by_a_fresh_process():
    items = [png(0), b"second" + png(1), png(2)]
    decoded = results(items)
    assert np.array_equal(decoded[1], decode(png(1)))
    assert np.array_equal(decoded[2], decode(png(2)))


def test_what_a_codec_prints_does_not_get_among_the_answers():
    items = [png(0), b"print" + png(1), png(2)]
    assert [result.shape for result in results(items)] == [(5, 4, 3)] * 3


def test_a_decoding_process_cannot_write_files(tmp_path):
    target = tmp_path / "written"
    results([b"write" + os.fsencode(target)])
    assert not target.exists() or target.read_bytes() == b""


def test_answers_that_make_no_sense_are_not_believed():
    assert results([png(0)], LIAR) == ["decoder: protocol error"]


def test_processes_that_cannot_start_are_an_error_and_no_fault_of_the_images():
    with pytest.raises(ClipguardError, match=r"cannot be started .* `isolated` off"):
        results([png(0)], ABSENT)


def test_a_source_that_crashes_one_process_after_another_is_given_up():
    limits = Limits(crashes=2)
    with pytest.raises(ClipguardError, match=r"3 workers \(decoder\) crash or hang"):
        results([b"crash"] * 5, FAULTY, limits)


def test_a_caller_who_stops_in_the_middle_leaves_nothing_behind_for_the_next():
    items: list[Item] = [png(seed) for seed in range(300)]
    decoder = Decoder(QUICK, FAULTY)
    first = decoder.results("pixels", items)
    assert np.array_equal(next(first), decode(items[0]))
    first.close()
    assert [result.shape for result in decoder.results("pixels", [png(0, (7, 7))])] == [(7, 7, 3)]


def test_sizes_come_from_workers_too():
    sizes = list(Decoder(QUICK, FAULTY).results("size", [png(0), b"crash", b"", np.zeros((4, 9), np.uint8)]))
    assert sizes == [(5, 4), "decoder crashed (SIGSEGV)", "empty", (4, 9)]


def test_without_isolation_images_are_decoded_right_here():
    limits = Limits(isolated=False)
    same(results([png(0), b""], ABSENT, limits), [png(0), b""], {1: "empty"})
    with pytest.raises(ClipguardError, match="cannot be started"):
        results([png(0), b""], ABSENT, Limits())


def test_no_worker_is_started_for_arrays_in_memory():
    items: list[Item] = [np.full((2, 3), seed, np.uint8) for seed in range(200)]
    same(results(items, ABSENT), items, {})
    assert list(Decoder(QUICK, ABSENT).results("size", items)) == [(2, 3)] * 200


def test_an_idle_worker_that_has_died_is_replaced_and_no_image_is_blamed():
    role = Role("decoder", ROLE.code + " # of this test")
    assert results([png(0)], role)[0].shape == (5, 4, 3)
    (worker,) = idle_workers(role, QUICK)
    worker.process.kill()
    worker.process.wait()
    decoder = Decoder(QUICK, role)
    assert [result.shape for result in decoder.results("pixels", [png(1)])] == [(5, 4, 3)]
    assert decoder.deaths == 0


@pytest.mark.parametrize(
    "lie",
    [
        "End()",
        "Fault('no', 0)",
        "[Result()]",
        "Result(height=5, width=0)",
        "Result(height=-5, width=-4, pixels=bytes(60))",
        "Result(height=1 << 31, width=1 << 31)",
        "Result(height=5, width=4, pixels=bytes(59))",
        "Result(height=5, width=4, pixels=bytes(61))",
        "Result(height=5, width='4', pixels=bytes(60))",
        "Result(reason=2001 * 'x')",
        "Encoded('pixels', b'')",
        "{'type': 'Result', 'other': 5}",
        "Raw(b'\\x91' * 100_000)",
        "Raw(b'\\x83\\xa4type\\xa6Result\\xa1x' + b'\\x91' * 100_000)",
        "Raw(b'\\xc1')",
        "Raw(b'')",
    ],
)
def test_a_worker_that_breaks_the_protocol_is_not_believed(lie):
    assert results([png(0)], liar(f"_framed({lie})"), Limits()) == ["decoder: protocol error"]


@pytest.mark.parametrize("count", [(1 << 40), 3 * 89_478_485 + 2001])
def test_a_message_above_its_limit_is_not_even_received(count):
    assert results([png(0)], liar(f"LENGTH.pack({count})"), Limits()) == ["decoder: protocol error"]


def liar(sent: str) -> Role:
    """Return a worker that sends bytes whatever it is given."""
    code = (
        "import os, sys; sys.path[:] = sys.argv[2:]\n"
        "from msgspec import Raw\n"
        "from clipguard.data.decode.decoder import Encoded, Result\n"
        "from clipguard.safety.sandbox import LENGTH, End, Fault, _framed\n"
        f"os.write(1, b'clipguard' + {sent})\n"
        "import time; time.sleep(1000)"
    )
    return Role("decoder", code)


def test_a_worker_that_reads_nothing_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("clipguard.safety.sandbox.START_SECONDS", 0.5)
    deaf = Role("decoder", "import os, time; os.write(1, b'clipguard'); time.sleep(1000)")
    assert results([bytes(1 << 22)], deaf) == ["decoder crashed (SIGKILL)"]


def test_processes_end_with_the_one_that_started_them_and_find_nothing_in_the_working_folder(tmp_path):
    # Were the working folder searched, this file would be run instead of numpy.
    (tmp_path / "numpy.py").write_text("raise SystemExit('stranger')")
    code = (
        "import sys; sys.path.remove('') if '' in sys.path else None\n"
        "from clipguard.data.decode import Decoder\n"
        "from clipguard.data.decode.decoder import ROLE\n"
        "from clipguard.safety.limits import Limits\n"
        "from clipguard.safety.sandbox import idle_workers\n"
        "print(list(Decoder(Limits()).results('pixels', [b'', b'x'])))\n"
        "print(idle_workers(ROLE, Limits())[0].process.pid)"
    )
    # As an installed command would be started: without the working folder on its path.
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    reasons, pid = done.stdout.splitlines()
    assert reasons == "['empty', 'not an image of a known format']"
    for _ in range(600):
        if not running(int(pid)):
            return
        time.sleep(0.1)
    pytest.fail("the decoding process outlived its parent")


def running(pid: int) -> bool:
    """Tell whether there is such a process that has not ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_a_decoding_process_loads_neither_torch_nor_parquet():
    code = (
        "import clipguard.data.decode.decoder, sys; print(sorted({n.partition('.')[0] for n in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "numpy" in done.stdout
    for name in ("torch", "pyarrow", "open_clip", "scipy", "timm"):
        assert f"'{name}'" not in done.stdout
