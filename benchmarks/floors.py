"""The guide's pass against the least that it can take: decoding, and the network's forward passes.

    python benchmarks/floors.py photographs imagenette.parquet /tmp/photographs --count 5000
    python benchmarks/floors.py run cifar10/train.parquet --rows 0:12000 --guide mini
    python benchmarks/floors.py run /tmp/photographs --guide mini

`run` prints one JSON object. In turn, three times:

* the *decode floor*: plain Pillow calls in one process a core, from bytes in memory to crops;
* the *forward floor*: those crops through the loaded guide, in the best of three arrangements of threads;
* the *pass*: the seconds of the reading stages of `clipguard scan`, which is ended after them.

The ratio of the floors' sum to the pass is 1 where nothing else costs anything and nothing overlaps.
`photographs` enlarges images to 500 pixels, as JPEG. Reproduces the published ratio.
"""

import argparse
import io
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipguard.data import ImageSource

CHUNK = 32
"""Crops a forward pass: as many as the product takes on a processor."""
TRIAL = 640
"""Crops that an arrangement of threads is tried on."""
SCAN = "import sys; from clipguard.cli import main; sys.exit(main())"


def photographs(given: argparse.Namespace) -> None:
    """Write a folder of JPEG files of 500 pixels, a sub-folder a class."""
    source = ImageSource.open(given.source)
    rows = np.linspace(0, len(source) - 1, given.count).round().astype(int)
    rows = np.unique(rows)
    for row, item in zip(rows, source.read(rows), strict=True):
        folder = given.folder / source.class_names[source.labels[row]].replace("/", " ")
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.open(io.BytesIO(item)).convert("RGB")
        picture.resize((500, 500), Image.Resampling.BICUBIC).save(folder / f"{row:06d}.jpg", quality=90)


def crop(content: bytes, size: int) -> np.ndarray:
    """Return an encoded image as a guide of `size` pixels takes it, by plain Pillow calls."""
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    scale = size / min(picture.size)
    w, h = (max(size, round(side * scale)) for side in picture.size)
    picture = picture.resize((w, h), Image.Resampling.BICUBIC)
    left, top = (w - size) // 2, (h - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size)))


@dataclass(frozen=True)
class Decoding:
    """The decode floor: a process a core, each with its share of the encoded images in its memory."""

    shares: list[list[bytes]]
    size: int

    def seconds(self) -> float:
        """Return the seconds until the slowest process has decoded and cropped its share."""
        # Forked, so that the images are there at once; nothing but a byte comes back.
        context = multiprocessing.get_context("fork")
        gate = context.Barrier(len(self.shares) + 1)
        processes = [context.Process(target=self._work, args=(share, gate)) for share in self.shares]
        for process in processes:
            process.start()
        gate.wait()
        began = time.perf_counter()
        gate.wait()
        seconds = time.perf_counter() - began
        for process in processes:
            process.join()
        return seconds

    def _work(self, share: list[bytes], gate: Any) -> None:
        crop(share[0], self.size)
        gate.wait()
        for content in share:
            crop(content, self.size)
        gate.wait()


class Forward:
    """The forward floor: crops through the guide's network, in batches, by some arrangement of threads."""

    def __init__(self, guide: str, cores: int) -> None:
        from clipguard.clip.zero_shot import guide_from_name

        self.cores = cores
        self.clip = guide_from_name(guide).clip
        size = self.clip.network.visual.image_size
        self.size = int(size if isinstance(size, int) else size[0])

    def arrangements(self) -> dict[str, Callable[[list[np.ndarray]], None]]:
        """Return what passes crops through the network, by name."""
        return {
            "1 thread": lambda crops: self._one(crops, 1),
            f"{self.cores} threads": lambda crops: self._one(crops, self.cores),
            f"{self.cores} lanes of 1 thread": self._lanes,
        }

    def _one(self, crops: list[np.ndarray], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        with torch.inference_mode():
            for start in range(0, len(crops), CHUNK):
                batch = torch.from_numpy(np.stack(crops[start : start + CHUNK]))
                pixels = self._normalized(batch.permute(0, 3, 1, 2).float().div(255))
                self.clip.network.encode_image(pixels, normalize=True).float().numpy()

    def _normalized(self, pixels: Any) -> Any:
        import torch

        mean, std = (
            torch.tensor(values).view(-1, 1, 1)
            for values in (self.clip.preprocessing.mean, self.clip.preprocessing.std)
        )
        return pixels.sub(mean).div(std)

    def _lanes(self, crops: list[np.ndarray]) -> None:
        import torch

        # Else each lane has as many threads of its own as there were before.
        torch.set_num_threads(1)
        cuts = [len(crops) * lane // self.cores for lane in range(self.cores + 1)]
        parts = [crops[start:stop] for start, stop in pairwise(cuts)]
        with ThreadPoolExecutor(self.cores) as lanes:
            list(lanes.map(lambda part: self._one(part, 1), parts))


def timed(work: Callable[[], object]) -> float:
    """Return the seconds by the clock."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def pass_seconds(given: argparse.Namespace, cores: int) -> float:
    """Return the seconds of the reading stages of a scan in a new run folder.

    Raises:
        SystemExit: the scan ended before them.
    """
    with tempfile.TemporaryDirectory(dir=given.scratch) as place:
        command = [sys.executable, "-c", SCAN, "scan", str(given.data), "--guide", given.guide]
        command += ["--out", f"{place}/run", *(["--rows", given.rows] if given.rows else [])]
        manifests = [Path(place, "run", "stages", stage, "manifest.json") for stage in given.stages]
        environment = {**os.environ, "OMP_NUM_THREADS": str(cores)}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        while not all(manifest.is_file() for manifest in manifests):
            if process.poll() is not None:
                raise SystemExit(f"the scan ended with exit code {process.returncode} before {given.stages}")
            time.sleep(0.2)
        process.terminate()
        process.wait()
        return sum(float(json.loads(manifest.read_text())["seconds"]) for manifest in manifests)


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Return floors, pass and ratio, in seconds."""
    from clipguard.lab.benchmark.machine import commit, machine

    cores = given.cores or len(os.sched_getaffinity(0))
    rows = tuple(int(number) for number in given.rows.split(":")) if given.rows else None
    source = ImageSource.open(given.data, rows=rows)
    contents = [item for item in source.read(range(len(source))) if isinstance(item, bytes)]
    forward = Forward(given.guide, cores)
    decoding = Decoding([contents[core::cores] for core in range(cores)], forward.size)
    crops = [crop(content, forward.size) for content in contents]
    trial = {name: [] for name in forward.arrangements()}
    for _ in range(given.repeats):
        for name, work in forward.arrangements().items():
            trial[name].append(timed(lambda work=work: work(crops[:TRIAL])))
    best = min(trial, key=lambda name: statistics.median(trial[name]))
    seconds = {"decode": [], "forward": [], "pass": []}
    for _ in range(given.repeats):
        # In turn, so that what else the machine does falls on all.
        seconds["decode"].append(decoding.seconds())
        seconds["forward"].append(timed(lambda: forward.arrangements()[best](crops)))
        seconds["pass"].append(pass_seconds(given, cores))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = [(d + f) / p for d, f, p in zip(*seconds.values(), strict=True)]
    return {
        "rows": len(contents),
        "guide": given.guide,
        "cores": cores,
        "forward_images_per_second": {
            name: round(min(TRIAL, len(crops)) / statistics.median(values), 1)
            for name, values in trial.items()
        },
        "best": best,
        "seconds": {name: [round(value, 2) for value in values] for name, values in seconds.items()},
        "medians": {name: round(value, 2) for name, value in medians.items()},
        "ratio": round((medians["decode"] + medians["forward"]) / medians["pass"], 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "stages": given.stages,
        "commit": commit(),
        "machine": machine(),
        "load": round(os.getloadavg()[0], 2),
    }


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("photographs")
    making.add_argument("source", type=Path)
    making.add_argument("folder", type=Path)
    making.add_argument("--count", type=int, default=5_000)
    measuring = commands.add_parser("run")
    measuring.add_argument("data", type=Path)
    measuring.add_argument("--rows", help="first and one past the last, as 0:12000")
    measuring.add_argument("--guide", default="mini", help="as for clipguard scan")
    measuring.add_argument("--repeats", type=int, default=3)
    measuring.add_argument("--cores", type=int, help="default: all that this process may use")
    measuring.add_argument(
        "--stages", nargs="+", default=["embeddings", "images"], help="stages that read and embed"
    )
    measuring.add_argument("--scratch", type=Path, help="folder for run folders; default: the system's")
    return parser


def main() -> None:
    """Do what the command line says."""
    given = arguments().parse_args()
    if given.command == "photographs":
        photographs(given)
    else:
        print(json.dumps(run(given), indent=1))


if __name__ == "__main__":
    main()
