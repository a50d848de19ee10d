"""Mutates small valid files of every format in this process: readers must refuse, list or read them.

    python tools/fuzz_readers.py --executions 1000000 --seed 0 --out fuzz
    python tools/fuzz_readers.py --seconds 60 --only tar,npz --out fuzz

Everything but a `ClipguardError` or a listed image is a fault: its input is saved in OUT/crashers, named
after the format, the exception and the number of its execution. The counts go to OUT/counts.json, for
`trust_table.py`; what hangs is stopped by the processor's time, and what crashes this process itself is left
in OUT/current.
"""

import argparse
import json
import os
import signal
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from clipguard.data import ImageSource
from clipguard.data.decode import UnreadableImage, decode
from clipguard.errors import ClipguardError
from clipguard.lab.benchmark.config import cells, read_config
from clipguard.safety.limits import MIB, Limits
from clipguard.seeds import Seed
from fuzz_mutations import mutated, with_png_sums, with_tar_sums

LIMITS = Limits(pixels=250_000, isolated=False, memory=1024 * MIB, array_bytes=8 * MIB, file_bytes=MIB)
HANG_SECONDS = 20
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CLASSES = ("cat", "dog")


@dataclass(frozen=True)
class Target:
    """A format.

    Attributes:
        seeds: files to begin with.
        read: reads a changed one and returns the number of images listed.
        repair: makes the check sums of a changed one right, for every second input.
    """

    seeds: tuple[bytes, ...]
    read: Callable[[bytes, Path], int]
    repair: Callable[[bytes], bytes] = bytes


def read_image(content: bytes, _: Path) -> int:
    """Decode one file."""
    try:
        decode(content, limits=LIMITS)
    except UnreadableImage:
        return 1
    return 0


def read_source(content: bytes, path: Path) -> int:
    """Open and decode a whole source."""
    path.write_bytes(content)
    source = ImageSource.open(path, classes=CLASSES, limits=LIMITS)
    listed = len(source.refused)
    for item in source.read(range(len(source))):
        try:
            decode(item, limits=LIMITS)
        except UnreadableImage:
            listed += 1
    return listed


def read_names(content: bytes, path: Path) -> int:
    """Read class names for two classes."""
    path.write_bytes(content)
    pairs = [(np.zeros((2, 2), np.uint8), label) for label in range(2)]
    ImageSource.open(pairs, classes=path, limits=LIMITS)
    return 0


def read_model(content: bytes, path: Path) -> int:
    """Read a weights file as `--model` does."""
    from clipguard.models.spec import load, read_spec

    path.write_bytes(content)
    spec = read_spec(path)
    if spec is not None:
        load(path, spec)
    return 0


def read_benchmark(content: bytes, path: Path) -> int:
    """Read a benchmark's file."""
    path.write_bytes(content)
    list(cells(read_config(path)))
    return 0


def targets() -> dict[str, Target]:
    """Return the formats by the suffix of their files."""
    from PIL import Image

    from hostile.case import encoded, pixels
    from hostile.images import CODECS, many_pages, small
    from hostile.tables import PARQUET, whole_table, zipped
    from hostile.weight_files import MODELS
    from tar_files import samples, tar_bytes

    image = Image.fromarray(pixels(12, 12))
    made = {
        kind.lower(): Target((encoded(image, kind), encoded(image.convert("L"), kind)), read_image)
        for kind in CODECS
    }
    made["png"] = Target(
        (*made["png"].seeds, encoded(image.convert("P")), small()), read_image, with_png_sums
    )
    made["tiff"] = Target((*made["tiff"].seeds, many_pages(3)), read_image)
    made["parquet"] = Target((whole_table(), PARQUET["null image"][1]()), read_source)
    made["npz"] = Target((zipped(),), read_source)
    made["tar"] = Target(
        (tar_bytes(samples(3)), tar_bytes(samples(3), tarfile.GNU_FORMAT)), read_source, with_tar_sums
    )
    made["json"] = Target((b'["cat", "dog"]', b'{"0": "cat", "1": "dog"}'), read_names)
    made["txt"] = Target((b"cat\ndog\n",), read_names)
    made["toml"] = Target(
        tuple(file.read_bytes() for file in sorted(BENCHMARKS.glob("*.toml"))), read_benchmark
    )
    made["safetensors"] = Target((MODELS["no description"](), MODELS["10**12 classes"]()), read_model)
    return made


def arguments() -> argparse.Namespace:
    """Return what was typed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--executions", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="formats, by comma")
    parser.add_argument("--out", type=Path, default=Path("fuzz"))
    given = parser.parse_args()
    if given.seconds == float("inf") and given.executions == 10**9:
        parser.error("give --seconds or --executions")
    return given


def outcome(target: Target, content: bytes, path: Path) -> tuple[str, str]:
    """Return what came of one input, and the exception where it is a fault."""
    try:
        return ("listed" if target.read(content, path) else "accepted"), ""
    except ClipguardError as error:
        return ("refused", "") if str(error).isprintable() else ("unexpected", "several lines")
    except Hang:
        return "hung", traceback.format_exc()
    except Exception as error:
        return "unexpected", f"{type(error).__name__}\n{traceback.format_exc()}"


class Hang(BaseException):
    """An input takes longer than `HANG_SECONDS` of processor time."""


def stop(_: int, __: object) -> None:
    """End what takes too long."""
    raise Hang


def save(out: Path, name: str, content: bytes, fault: str) -> None:
    """Keep an input that shows a fault, with the way to it."""
    (out / "crashers").mkdir(exist_ok=True)
    (out / "crashers" / name).write_bytes(content)
    (out / "crashers" / f"{name}.log").write_text(fault)
    print(f"FAULT {name}: {fault.splitlines()[-1] if fault else ''}")


def main() -> int:
    """Fuzz, and return 1 if a fault was found."""
    given = arguments()
    given.out.mkdir(parents=True, exist_ok=True)
    chosen = {
        name: target for name, target in targets().items() if not given.only or name in given.only.split(",")
    }
    counts: dict[str, Counter[str]] = {name: Counter() for name in chosen}
    signal.signal(signal.SIGVTALRM, stop)
    started, number = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        while number < given.executions and time.monotonic() - started < given.seconds:
            for name, target in chosen.items():
                # A stream for each execution, so that one can be repeated alone.
                draw = Seed(given.seed).child("fuzz", name, number).generator()
                content = mutated(target.seeds[int(draw.integers(len(target.seeds)))], draw)
                content = target.repair(content) if draw.integers(2) else content
                (given.out / "current").write_bytes(content)
                signal.setitimer(signal.ITIMER_VIRTUAL, HANG_SECONDS)
                found, fault = outcome(target, content, Path(folder, f"x.{name}"))
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
                counts[name][found] += 1
                number += 1
                if found in ("unexpected", "hung"):
                    save(given.out, f"{name}-{fault.split()[0]}-{number}", content, fault)
    report = {
        "seed": given.seed,
        "executions": number,
        "seconds": round(time.monotonic() - started, 1),
        "formats": {name: dict(count) for name, count in counts.items()},
    }
    (given.out / "counts.json").write_text(json.dumps(report, indent=1) + "\n")
    (given.out / "current").unlink(missing_ok=True)
    print(json.dumps(report))
    return int(any(count["unexpected"] + count["hung"] for count in counts.values()))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
