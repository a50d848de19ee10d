"""Images a second by arrangement of threads, alone and beside another busy process.

    python benchmarks/threads.py compare /tmp/threads.json --threads 2

What is measured: the guide's forward passes, and the training of a shallow net and of a small ResNet.
Arrangements: one thread; N threads as they come; N threads that sleep while they wait (`passive`); and N
*lanes*, Python threads that each compute alone, with one thread. Writes JSON, and prints the same as a
Markdown table. Reproduces the published choice of arrangement.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

WORK = ("guide", "shallow-32", "preactresnet18-16")
BUSY = "while True: pass"
BATCHES = {"guide": 32, "shallow-32": 128, "preactresnet18-16": 128}


def forward(guide: str, count: int) -> int:
    """Pass crops through the guide in batches; return how many images that were."""
    clip = _clip(guide)
    from clipguard.data.decode import prepared

    crops = [prepared(image, clip.preprocessing) for image in _images(BATCHES["guide"])]
    for _ in range(0, count, len(crops)):
        clip.embed_crops(crops)
    return -(-count // len(crops)) * len(crops)


_loaded: dict[str, Any] = {}


def _clip(guide: str) -> Any:
    from clipguard.clip.zero_shot import guide_from_name

    # Lanes share one network.
    if guide not in _loaded:
        _loaded[guide] = guide_from_name(guide).clip
    return _loaded[guide]


def _images(count: int) -> np.ndarray:
    from clipguard.seeds import Seed

    return Seed(0).child("threads").generator().integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def train(architecture: str, count: int) -> int:
    """Train a net for one epoch; return how many images that were."""
    from clipguard.compute.training import Recipe, cross_entropy, fit
    from clipguard.models.spec import ModelSpec, build
    from clipguard.seeds import Seed

    seed = Seed(0).child("threads", architecture)
    model = build(ModelSpec.sized(architecture=architecture, num_classes=10, input_size=(32, 32)), seed)
    recipe = Recipe(epochs=1, batch_size=BATCHES[architecture], lr=0.01, crop=0.0, flip=False)
    fit(model, _images(count), np.arange(count), cross_entropy(np.arange(count) % 10), recipe, seed)
    return count


def work(name: str, guide: str, count: int) -> int:
    """Do one kind of work on about `count` images; return on how many."""
    return forward(guide, count) if name == "guide" else train(name, count)


def lanes(number: int, once: Callable[[], int]) -> int:
    """Return how many images all lanes together have worked on."""
    import torch

    def lane(_: int) -> int:
        torch.set_num_threads(1)
        return once()

    if number == 1:
        return once()
    torch.set_num_threads(1)
    with ThreadPoolExecutor(number) as pool:
        return sum(pool.map(lane, range(number)))


def measure(given: argparse.Namespace) -> None:
    """Print images a second in this process, whose environment says how many threads there are."""

    def once(count: int) -> int:
        return lanes(given.lanes, lambda: work(given.work, given.guide, count))

    once(BATCHES[given.work])
    began, spent = time.perf_counter(), time.process_time()
    images = once(given.count)
    seconds, cpu = time.perf_counter() - began, time.process_time() - spent
    print(json.dumps({"images_per_second": images / seconds, "cpu_us_per_image": 1e6 * cpu / images}))


def arrangements(threads: int) -> dict[str, tuple[dict[str, str], int]]:
    """Return the environment and the number of lanes of each arrangement."""
    many = {"OMP_NUM_THREADS": str(threads)}
    return {
        "1 thread": ({"OMP_NUM_THREADS": "1"}, 1),
        f"{threads} threads": (many, 1),
        f"{threads} passive": ({**many, "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}, 1),
        f"{threads} lanes": ({"OMP_NUM_THREADS": "1"}, threads),
    }


def row(name: str, arrangement: str, beside: int, given: argparse.Namespace) -> dict[str, Any]:
    """Return the median of some measurements, each in a process of its own, beside `beside` busy ones."""
    environment, number = arrangements(given.threads)[arrangement]
    command = [sys.executable, __file__, "measure", name, "--guide", given.guide]
    command += ["--count", str(given.count), "--lanes", str(number)]
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(beside)]
    try:
        done = [
            json.loads(
                subprocess.run(
                    command, env={**os.environ, **environment}, capture_output=True, text=True, check=True
                ).stdout
            )
            for _ in range(given.repeats)
        ]
    finally:
        for process in busy:
            process.kill()
            process.wait()
    medians = {key: round(statistics.median(one[key] for one in done), 1) for key in done[0]}
    return {"work": name, "arrangement": arrangement, "busy_processes": beside, **medians}


def table(rows: list[dict[str, Any]]) -> str:
    """Return images a second as Markdown: arrangements down, work across, each alone and beside."""
    columns = list(dict.fromkeys((one["work"], one["busy_processes"]) for one in rows))
    heads = [f"{name}, {'busy' if beside else 'idle'}" for name, beside in columns]
    lines = [f"| images a second | {' | '.join(heads)} |", "|---" * (1 + len(columns)) + "|"]
    for arrangement in dict.fromkeys(one["arrangement"] for one in rows):
        values = {
            (one["work"], one["busy_processes"]): f"{one['images_per_second']:.0f}"
            for one in rows
            if one["arrangement"] == arrangement
        }
        lines.append(f"| {arrangement} | {' | '.join(values[column] for column in columns)} |")
    return "\n".join(lines)


def compare(given: argparse.Namespace) -> None:
    """Write all rows as JSON and print the table."""
    from clipguard.lab.benchmark.machine import commit, machine

    rows = [
        row(name, arrangement, beside, given)
        for name in given.work
        for beside in (0, 1)
        for arrangement in arrangements(given.threads)
    ]
    about = {"commit": commit(), "machine": machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    given.file.write_text(json.dumps({**about, "images": given.count, "rows": rows}, indent=1) + "\n")
    print(table(rows))


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    comparing = commands.add_parser("compare")
    comparing.add_argument("file", type=Path)
    comparing.add_argument("--threads", type=int, default=os.cpu_count())
    comparing.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    comparing.add_argument("--repeats", type=int, default=3)
    measuring = commands.add_parser("measure")
    measuring.add_argument("work", choices=WORK)
    measuring.add_argument("--lanes", type=int, default=1)
    for one in (comparing, measuring):
        one.add_argument("--guide", default="mini")
        one.add_argument("--count", type=int, default=1280, help="images a measurement, and a lane")
    return parser


def main() -> None:
    """Do what the command line says."""
    given = arguments().parse_args()
    {"compare": compare, "measure": measure}[given.command](given)


if __name__ == "__main__":
    main()
