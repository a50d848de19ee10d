"""Kill a defence at random moments, start it again until it is through, and compare its files to the byte.

    python tools/kill_torture.py --rounds 20 --seed 0 --out torture.json

Each round is a fresh run folder. The defence is small (some seconds) but whole: guide's pass in several
shards, early-training model, trigger detector, a victim trained with checkpoints, unlearning. SIGKILL lets it
tidy nothing up.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from PIL import Image

from clipguard.clip import embeddings
from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.small_nets import SmallNetConfig
from clipguard.compute.training import Recipe
from clipguard.detection.trigger_detector import TriggerDetectorConfig
from clipguard.mitigation.unlearning import UnlearningConfig
from clipguard.pipeline.config import DefenseConfig
from clipguard.pipeline.defender import Defender
from clipguard.pipeline.summary import write_summary
from clipguard.runs import read_table, verify_run
from clipguard.runs.summary import SUMMARY
from clipguard.seeds import Seed

IMAGES = 96
SHARD = 16
MOST_KILLS = 6
"""Of one round: after so many, it may end."""

_TIMED = {"seconds"}
"""Columns of a history that hold times."""


def tiny_config() -> DefenseConfig:
    """Return a defence of a few seconds that flags nothing, so that it is sure to get through."""
    quick = Recipe(epochs=2, lr=0.02, batch_size=16, crop=0.0, flip=False)
    net = SmallNetConfig(
        architecture="shallow-8", epochs=2, batch_size=16, optimizer="sgd", lr=0.02, schedule="one-cycle"
    )
    return DefenseConfig(
        size=(16, 16),
        early_model=net,
        trigger_detector=TriggerDetectorConfig(net=net, flagged=1.0, clean=1.0),
        architecture="preactresnet18-4",
        victim=replace(quick, epochs=4),
        unlearning=UnlearningConfig(recipe=quick),
    )


def tiny_data(folder: Path) -> Path:
    """Return a folder of small noisy pictures, dark cats and bright dogs."""
    draw = Seed(0).child("torture", "data").generator()
    for row in range(IMAGES):
        file = folder / ("cat", "dog")[row % 2] / f"{row:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 90, (16, 16, 3), dtype=np.uint8) + np.uint8(120 * (row % 2))
        Image.fromarray(pixels).save(file)
    return folder


def settled(run: Path) -> dict[str, Any]:
    """Return all that a run wrote, but for times, places, and the hashes and the page that hold them."""
    files = (file for file in sorted(run.rglob("*")) if file.is_file())
    left_out = {"manifest.json", "seal.json", "report.html", ".lock"}
    return {file.relative_to(run).as_posix(): _timeless(file) for file in files if file.name not in left_out}


def _timeless(file: Path) -> Any:
    if file.name == "history.parquet":
        columns = read_table(file)
        return {name: values.tobytes() for name, values in columns.items() if name not in _TIMED}
    if file.name == SUMMARY:
        summary = json.loads(file.read_text())
        titles = {name: stage["title"] for name, stage in summary["stages"].items()}
        return {**summary, "run_dir": "", "stages": titles}
    return file.read_bytes()


GUIDE = ClipGuide("mini")
"""Loaded before the first child is made, which takes longer than all that a child does."""


def defend(data: Path, run: Path) -> None:
    """Run the defence; a user's command line does the same."""
    embeddings.SHARD = SHARD
    defender = Defender(GUIDE, run, config=tiny_config()).fit(data)
    write_summary(defender, "defend", files={})


def attempt(data: Path, run: Path, kill_after: float | None) -> bool:
    """Return whether a process of its own got through before it was killed.

    Raises:
        RuntimeError: it failed by itself.
    """
    child = os.fork()
    if child == 0:
        code = 2
        try:
            defend(data, run)
            code = 0
        except BaseException as error:
            print(f"defence failed: {error}", file=sys.stderr)
        finally:
            os._exit(code)
    end = None if kill_after is None else time.monotonic() + kill_after
    while True:
        done, status = os.waitpid(child, 0 if end is None else os.WNOHANG)
        if done:
            break
        if end is not None and time.monotonic() >= end:
            os.kill(child, signal.SIGKILL)
            end = None
        time.sleep(0.002)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("the defence failed by itself")
    return os.WIFEXITED(status)


@dataclass(slots=True)
class Counts:
    """What the rounds came to."""

    rounds: int = 0
    kills: int = 0
    identical: int = 0
    verified: int = 0
    killed_in: Counter[str] = field(default_factory=Counter)
    differing: list[str] = field(default_factory=list)


def stage_at_work(run: Path) -> str:
    """Return the stage that a killed process was in, by what it left."""
    parts = [folder.name[1:].rpartition("-")[0] for folder in run.glob("stages/.*.part")]
    return parts[0] if parts else "between stages"


def torture(place: Path, rounds: int, seed: int, limit: float) -> dict[str, Any]:
    """Return the counts of so many rounds, or of as many as `limit` seconds allow."""
    assert GUIDE.clip
    began = time.monotonic()
    data = tiny_data(place / "data")
    started = time.monotonic()
    attempt(data, place / "whole", None)
    whole, expected = time.monotonic() - started, settled(place / "whole")
    counts = Counts()
    for number in range(rounds):
        if time.monotonic() - began > limit:
            break
        run, draw = place / f"round-{number}", Seed(seed).child("kill", number).generator()
        for _ in range(MOST_KILLS):
            if attempt(data, run, float(draw.uniform(0, whole))):
                break
            counts.kills += 1
            counts.killed_in[stage_at_work(run)] += 1
        attempt(data, run, None)
        files = settled(run)
        names = sorted(expected.keys() | files.keys())
        counts.differing += [f"{run.name}/{name}" for name in names if expected.get(name) != files.get(name)]
        counts.rounds += 1
        counts.identical += files == expected
        counts.verified += all(check.status == "ok" for check in verify_run(run))
    return {
        "seed": seed,
        "rounds": counts.rounds,
        "kills": counts.kills,
        "killed_in": dict(sorted(counts.killed_in.items())),
        "identical": counts.identical,
        "verified": counts.verified,
        "differing": counts.differing,
        "undisturbed_seconds": round(whole, 2),
    }


def main() -> int:
    """Return 0 when every round ended with the same bytes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--limit", type=float, default=float("inf"), help="start no round after so many seconds"
    )
    parser.add_argument("--out", type=Path, help="also write the counts as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        result = torture(Path(place), options.rounds, options.seed, options.limit)
    text = json.dumps(result, indent=1)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")
    return 0 if result["identical"] == result["verified"] == result["rounds"] else 1


if __name__ == "__main__":
    sys.exit(main())
