"""Memory, processor time and passes over the source of a scan, on synthetic data of any size.

    python benchmarks/scale.py make /tmp/data --rows 1000000 --classes 1000
    python benchmarks/scale.py guide /tmp/guide
    python benchmarks/scale.py run /tmp/data --guide /tmp/guide --out /tmp/run

`make` writes Parquet shards: images of a colour a class, with noise; 1 % of the rows carry a white patch and
the label 0. `guide` writes the smallest vision transformer that open_clip builds, with random weights: all
but the guide is left to measure. `run` prints one JSON object; it scans as `clipguard scan` does, under a
limit on open files. With `--short`, nets train for one epoch.

`run` keeps the page cache free of the source: what the processes fetch from storage, divided by the size of
the source, is about how often it was read. What the kernel reads ahead in vain is too much, and passes
within a fraction of a second of each other are one. `--trace` lets strace count instead, which is exact but
for mapped files, and costs time. Reproduces the published cost a row.
"""

import argparse
import json
import os
import platform
import re
import shutil
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipguard.clip.loading import CONFIG, WEIGHTS
from clipguard.seeds import Seed
from process_tree import Cost, measured

PATCH = 3
RELABELED = 0.01
LIMITED = (
    "import resource, sys; most = int(sys.argv.pop(1)); "
    "resource.setrlimit(resource.RLIMIT_NOFILE, (most, most)); "
)
SCAN = LIMITED + "from clipguard.cli import main; sys.argv.insert(1, 'scan'); sys.exit(main())"
SHORT = LIMITED + f"sys.path.insert(0, {str(Path(__file__).parent)!r}); from short_scan import main; main()"
# -D: the scan, not strace, is the child that is measured.
CALLS = "trace=read,pread64,readv,preadv,preadv2"
STRACE = ("strace", "-D", "-f", "-y", "-qq", "-s", "0", "--seccomp-bpf", "-e", CALLS)
PACKAGES = ("clipguard", "torch", "numpy", "pyarrow", "pillow", "open_clip_torch")
GUIDE = {
    "model_cfg": {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "head_width": 32, "layers": 1},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}


def png(pixels: np.ndarray) -> bytes:
    """Return an RGB image as PNG; its noise hardly shrinks, so it is stored and not compressed."""
    h, w, _ = pixels.shape
    # In front of each line, the number of its filter: none.
    lines = np.concatenate([np.zeros((h, 1), np.uint8), pixels.reshape(h, -1)], axis=1).tobytes()
    header = struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 0)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def ppm(pixels: np.ndarray) -> bytes:
    """Return an RGB image as PPM: a header and the pixels."""
    h, w, _ = pixels.shape
    return b"P6 %d %d 255\n" % (w, h) + pixels.tobytes()


FORMATS: dict[str, Callable[[np.ndarray], bytes]] = {"png": png, "ppm": ppm}


def make(given: argparse.Namespace) -> None:
    """Write the shards; the same arguments give the same bytes."""
    given.folder.mkdir(parents=True, exist_ok=True)
    seed = Seed(given.seed).child("scale")
    colors = seed.child("colors").generator().integers(30, 190, (given.classes, 3))
    starts = range(0, given.rows, given.shard_rows)
    for shard, first in enumerate(starts):
        rows = range(first, min(first + given.shard_rows, given.rows))
        path = given.folder / f"train-{shard:05d}-of-{len(starts):05d}.parquet"
        schema = _schema(given.classes)
        with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
            generator = seed.child("shard", shard).generator()
            for start in range(rows.start, rows.stop, given.group_rows):
                part = range(start, min(start + given.group_rows, rows.stop))
                writer.write_table(_table(part, colors, generator, given, schema))


def _table(
    rows: range,
    colors: np.ndarray,
    generator: np.random.Generator,
    given: argparse.Namespace,
    schema: pa.Schema,
) -> pa.Table:
    count = len(rows)
    labels = generator.integers(0, given.classes, count)
    if rows.start == 0:
        # Two classes at least, however few rows there are.
        labels[0] = 1
    images = generator.integers(0, 64, (count, given.size, given.size, 3), dtype=np.uint8)
    images += colors[labels].astype(np.uint8)[:, None, None]
    relabeled = generator.random(count) < RELABELED
    images[relabeled, -PATCH:, -PATCH:] = 255
    labels[relabeled] = 0
    encode = FORMATS[given.format]
    content = pa.array([encode(pixels) for pixels in images], pa.binary())
    paths = pa.array([f"{row:09d}.{given.format}" for row in rows], pa.string())
    cells = pa.StructArray.from_arrays([content, paths], ["bytes", "path"])
    return pa.table([cells, pa.array(labels, pa.int64())], schema=schema)


def _schema(classes: int) -> pa.Schema:
    names = [f"kind {number:05d}" for number in range(classes)]
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    cell = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    about = json.dumps({"info": {"features": features}})
    return pa.schema([("image", cell), ("label", pa.int64())]).with_metadata({"huggingface": about})


def guide(given: argparse.Namespace) -> None:
    """Write the stub guide as a folder for `local-dir:`; the same seed gives the same weights."""
    from open_clip import CLIP
    from safetensors.torch import save_file

    given.folder.mkdir(parents=True, exist_ok=True)
    with Seed(given.seed).child("stub guide").torch_global():
        network = CLIP(**GUIDE["model_cfg"])
    state = {name: value.detach().contiguous() for name, value in network.state_dict().items()}
    save_file(state, given.folder / WEIGHTS, metadata={"format": "pt"})
    (given.folder / CONFIG).write_text(json.dumps(GUIDE, indent=1) + "\n")


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Return what a scan costs, in a new run folder.

    Raises:
        SystemExit: the run folder is there already, or the scan failed.
    """
    if given.out.exists():
        if not given.replace:
            raise SystemExit(f"{given.out} exists: its results would be found again; give --replace")
        shutil.rmtree(given.out)
    files = sorted(given.folder.glob("*.parquet"))
    held = [os.open(file, os.O_RDONLY) for file in files]
    for descriptor in held:
        # Pages not written yet cannot leave the cache.
        os.fsync(descriptor)
    command = [sys.executable, "-c", SHORT if given.short else SCAN, str(given.nofile), str(given.folder)]
    command += ["--guide", _guide_name(given.guide), "--out", str(given.out), *given.options]
    stages = given.out / "stages"
    with tempfile.NamedTemporaryFile() as trace:
        _forget(held)
        cost = measured(
            [*STRACE, "-o", trace.name, *command] if given.trace else command,
            phase=lambda: len(list(stages.iterdir())) if stages.is_dir() else 0,
            each=lambda: _forget(held),
        )
        reads = read_bytes(Path(trace.name), files) if given.trace else None
    # Other codes are verdicts.
    if cost.code not in (0, 1, 3) or not (given.out / "summary.json").is_file():
        raise SystemExit(f"the scan failed with exit code {cost.code}")
    return _report(cost, json.loads((given.out / "summary.json").read_text()), files, reads)


def read_bytes(trace: Path, files: list[Path]) -> int:
    """Return how many bytes of the files the calls in a trace have read."""
    paths, total = {str(file.resolve()) for file in files}, 0
    with trace.open(errors="replace") as lines:
        for line in lines:
            found = re.search(r"\(\d+<(.+?)>, .* = (\d+)$", line)
            if found and found[1] in paths:
                total += int(found[2])
    return total


def _guide_name(text: str) -> str:
    return f"local-dir:{text}" if Path(text).is_dir() else text


def _forget(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _report(cost: Cost, summary: dict[str, Any], files: list[Path], reads: int | None) -> dict[str, Any]:
    from clipguard.lab.benchmark.machine import commit, machine

    rows, size = summary["data"]["n"], sum(file.stat().st_size for file in files)
    seconds = {name: stage["seconds"] for name, stage in summary["stages"].items()}
    # While n stages are finished, the next one runs; after the last, the outputs are written.
    names = [*seconds, "outputs"]
    return {
        "rows": rows,
        "classes": len(summary["data"]["classes"]),
        "peak_anon_main": cost.main,
        "peak_anon_all": cost.tree,
        "peak_anon_by_stage": {names[min(n, len(names) - 1)]: both for n, both in cost.phases.items()},
        "cpu_seconds": round(cost.cpu, 2),
        "cpu_us_per_row": round(1e6 * cost.cpu / rows, 1),
        "wall_seconds": round(cost.wall, 2),
        "stages": seconds,
        "source_bytes": size,
        "read_from_disk": cost.read_from_disk,
        "read_from_anywhere": cost.read_from_anywhere,
        "passes_estimated": round(cost.read_from_disk / size, 2),
        "passes_traced": reads and round(reads / size, 2),
        "processes": cost.processes,
        "flagged": summary["partition"],
        "commit": commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
    }


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make")
    making.add_argument("folder", type=Path)
    making.add_argument("--rows", type=int, default=20_000)
    making.add_argument("--classes", type=int, default=10)
    making.add_argument("--shard-rows", type=int, default=50_000)
    making.add_argument("--group-rows", type=int, default=1_000)
    making.add_argument("--size", type=int, default=32)
    making.add_argument("--format", choices=FORMATS, default="png")
    making.add_argument("--seed", type=int, default=0)
    stub = commands.add_parser("guide")
    stub.add_argument("folder", type=Path)
    stub.add_argument("--seed", type=int, default=0)
    scanning = commands.add_parser("run")
    scanning.add_argument("folder", type=Path)
    scanning.add_argument(
        "--guide", default="mini", help="folder of `guide`, or a name as for clipguard scan"
    )
    scanning.add_argument("--out", type=Path, required=True)
    scanning.add_argument("--nofile", type=int, default=256, help="most open files of a process")
    scanning.add_argument("--replace", action="store_true", help="delete the run folder first")
    scanning.add_argument("--short", action="store_true", help="train nets for one epoch")
    scanning.add_argument("--trace", action="store_true", help="count passes by strace")
    scanning.add_argument("options", nargs="*", help="after --: further options of clipguard scan")
    return parser


def main() -> None:
    """Do what the command line says."""
    given = arguments().parse_args()
    if given.command == "run":
        print(json.dumps(run(given), indent=1))
    else:
        {"make": make, "guide": guide}[given.command](given)


if __name__ == "__main__":
    main()
