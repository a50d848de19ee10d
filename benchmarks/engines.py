"""Ray on one machine against one process: the same bytes, and what Ray costs after it has started.

    python benchmarks/engines.py DATA --guide mini --rows 0:6000 --workers 2 --kills 10

Both read and embed the same rows, one after the other, in new folders; seconds of Ray count from its first
finished unit. With `--kills`, the pass is done once more while workers are killed at random.
"""

import argparse
import hashlib
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipguard.clip.embeddings import ReadingPass, read_source
from clipguard.clip.zero_shot import guide_from_name
from clipguard.compute.engine import Engine, LocalEngine
from clipguard.compute.lanes import lanes_here
from clipguard.compute.ray_engine import RayEngine
from clipguard.compute.threads import one_thread
from clipguard.data import ImageSource
from clipguard.lab.benchmark.machine import commit, machine
from clipguard.seeds import Seed
from clipguard.types import Preprocessing


def reading(options: argparse.Namespace, folder: Path) -> ReadingPass:
    """Return a pass over the data into a new folder."""
    first, end = map(int, options.rows.split(":"))
    (folder / "embeddings").mkdir(parents=True)
    return ReadingPass(
        source=ImageSource.open(options.data, rows=(first, end)),
        guide=guide_from_name(options.guide),
        folder=folder / "embeddings",
        images=((folder / "images", Preprocessing(size=(options.size, options.size))),),
        lanes=lanes_here(),
    )


def passed(work: ReadingPass, engine: Engine) -> dict[str, Any]:
    """Return the seconds of a pass, all and from the first finished shard on, and the hash of its files."""
    began, times = time.monotonic(), []
    read_source(work, engine, lambda done, total: times.append((time.monotonic(), done)))
    (first, rows), (last, total) = times[0], times[-1]
    return {
        "seconds": round(last - began, 2),
        "images_a_second_after_the_first_shard": round((total - rows) / max(last - first, 1e-9), 1),
        "sha256": contents(work.folder.parent),
    }


def contents(folder: Path) -> str:
    """Return the hash of all files of a pass."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return digest.hexdigest()


def killed(work: ReadingPass, engine: RayEngine, kills: int) -> int:
    """Finish a pass while workers are killed, one after some finished shards; return how many were."""
    draw, done = Seed(0).generator(), 0
    for number, _ in enumerate(engine.run(work, work.units(range(work.count)))):
        if done < kills and draw.random() < 2 * kills / max(1, work.count - number):
            actors = list(_actors())
            if actors:
                os.kill(actors[int(draw.integers(len(actors)))], signal.SIGKILL)
                done += 1
    return done


def _actors() -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if b"ray::MapWorker" in (entry / "cmdline").read_bytes():
                    yield int(entry.name)
            except OSError:
                continue


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--guide", default="mini")
    parser.add_argument("--rows", default="0:6000")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=0)
    options = parser.parse_args()
    ray = RayEngine(workers=options.workers)
    out: dict[str, Any] = {"commit": commit(), "machine": machine(), "rows": options.rows}
    with tempfile.TemporaryDirectory() as scratch, one_thread():
        out["local"] = passed(reading(options, Path(scratch, "local")), LocalEngine())
        out["ray"] = passed(reading(options, Path(scratch, "ray")), ray)
        if options.kills:
            work = reading(options, Path(scratch, "killed"))
            kills = killed(work, ray, options.kills)
            out["killed"] = {"kills": kills, **passed(work, ray)}
    out["same_bytes"] = len({out[name]["sha256"] for name in out if isinstance(out[name], dict)}) == 1
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
