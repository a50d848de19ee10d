"""Cause by removal where the guide is at chance: trusted by the guide alone, and by the linear probe as well.

    python benchmarks/removal_with_weak_guide.py     -> results/ablation/removal-with-weak-guide.json

10,000 development rows of CIFAR-10 with class names as ids, and 100 samples with a patch. Half of these count
as flagged; then 40 innocent samples of the class do, those with the lowest early loss, and those that also
have the highest loss under the guide: what both nets should believe.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np

from clipguard.compute.device import CPU, computing_on
from clipguard.compute.threads import granted_threads, one_thread
from clipguard.detection.entropy_map import rank
from clipguard.detection.removal import beliefs, trusted_samples
from clipguard.lab.benchmark.machine import commit, machine
from clipguard.pipeline.config import DefenseConfig
from clipguard.seeds import Seed
from runners import RESULTS
from verdict_draws import CIFAR10, Draw, file_of, made, read_scores, scored

FILE = RESULTS / "ablation" / "removal-with-weak-guide.json"
CONFIG = DefenseConfig()
TARGET, POISONED, INNOCENT = 1, 100, 40


def main() -> None:
    """Train two nets for each group and rule, and write and print what they believe."""
    options = {"count": POISONED, "target": TARGET}
    draw = Draw(
        data=CIFAR10[0], rows=CIFAR10[1], attack="badnets", options=options, condition="ids", seed=601
    )
    scored(draw)
    scores, _ = read_scores(file_of(draw))
    data, truth = made(draw)
    results = {}
    for title, rows in groups(scores.guide_nll, scores.late_nll, truth.poisoned, data.labels == TARGET):
        flagged = np.isin(np.arange(len(data)), rows)
        trusted = trusted_samples(scores, flagged, CONFIG.entropy_map, CONFIG.trigger_detector)
        # What the probe finds improbable is left out of these: once more without that rule.
        low = np.maximum(scores.first_round, scores.trigger_score) <= CONFIG.trigger_detector.clean
        candidates = (data.labels == TARGET) & (rank(scores.guide_nll) > 1 - CONFIG.entropy_map.candidate)
        for rule, some in (("guide alone", low & ~flagged & ~candidates), ("and probe", trusted)):
            (belief,) = beliefs(data, some, flagged, CONFIG.early_model, Seed(0))
            poison = int((some & truth.poisoned).sum())
            results[f"{title}, {rule}"] = {
                "poisoned and trusted": poison,
                "excess": belief.excess,
                **asdict(belief),
            }
            print(title, rule, results[f"{title}, {rule}"], flush=True)
    about = {
        "command": "python benchmarks/removal_with_weak_guide.py",
        "commit": commit(),
        "machine": machine(),
    }
    FILE.write_text(json.dumps({**about, "draw": draw.name, "results": results}, indent=1) + "\n")


def groups(
    guide_nll: np.ndarray, late_nll: np.ndarray, poisoned: np.ndarray, inside: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the rows of each group that counts as flagged."""
    half = np.random.default_rng(0).permutation(np.flatnonzero(poisoned))[: POISONED // 2]
    innocent = np.flatnonzero(inside & ~poisoned)
    yield "poisoned", half
    yield "easy", innocent[np.argsort(late_nll[innocent])[:INNOCENT]]
    yield (
        "easy and improbable",
        innocent[np.argsort((late_nll - rank(guide_nll))[innocent])[:INNOCENT]],
    )


if __name__ == "__main__":
    with computing_on(CPU), granted_threads(None), one_thread():
        main()
