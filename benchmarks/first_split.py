"""How much poison the first split leaves among the clean samples, before the trigger detector sees it.

    python benchmarks/first_split.py

Three draws whose guide is weak: GTSRB and CIFAR-100 with BadNets on 5 % (target 0), GTSRB with SIG (2);
rows 0-11,999. Split by CGD's two axes, and with the linear probe as second axis of the guide, as a scan does.
The rows are written to benchmarks/results/verdict/first-split.json.
"""

import json

import numpy as np

from clipguard.compute.device import CPU, computing_on
from clipguard.compute.threads import granted_threads
from clipguard.detection.competence import second_axis
from clipguard.detection.early_model import early_losses
from clipguard.detection.entropy_map import entropy_map, first_partition, opinion
from clipguard.detection.probed_labels import probed_labels
from clipguard.lab.benchmark.machine import commit, machine
from clipguard.pipeline.config import DefenseConfig
from clipguard.seeds import Seed, Stream
from clipguard.types import Partition
from runners import RESULTS
from verdict_draws import Draw, guide_for, made

DRAWS = [
    Draw(data=data, rows=(0, 12_000), attack=attack, options={"count": 600, "target": target}, seed=100)
    for data, attack, target in (("gtsrb", "badnets", 0), ("cifar100", "badnets", 0), ("gtsrb", "sig", 2))
]


def splits(draw: Draw) -> tuple[dict[str, Partition], np.ndarray]:
    """Return the first partition of a draw by two axes and by three, and which samples are poisoned."""
    data, truth = made(draw)
    guide, config, seed = guide_for(draw), DefenseConfig(seed=draw.seed), Seed(draw.seed)
    k = len(data.class_names)
    embeddings = guide.clip.embed_images(data.pixels)
    scores = guide.logits(embeddings, data.class_names)
    nll, likeliest = opinion(scores, data.labels)
    losses = early_losses(data, scores, config.early_model, seed.child(Stream.EARLY_MODEL))
    probe, *_ = probed_labels(embeddings, data.labels, k, seed.child("labels"))
    entropy = entropy_map(nll, losses.early)
    axis = second_axis(data.labels, likeliest, probe.loss, probe.likeliest)
    two = first_partition(entropy, data.labels, k, config.entropy_map)
    return {
        "two axes": two,
        "with the probe": first_partition(entropy, data.labels, k, config.entropy_map, axis),
    }, truth.poisoned


def main() -> None:
    """Write and print all rows."""
    rows = []
    for draw in DRAWS:
        partitions, poisoned = splits(draw)
        for name, partition in partitions.items():
            rows.append(
                {
                    "draw": draw.name,
                    "split": name,
                    "poisoned": int(poisoned.sum()),
                    "clean": int(partition.clean.sum()),
                    "poisoned_and_clean": int((partition.clean & poisoned).sum()),
                    "poisoned_and_candidate": int((partition.flagged & poisoned).sum()),
                }
            )
            print(rows[-1], flush=True)
    about = {"command": "python benchmarks/first_split.py", "commit": commit(), "machine": machine()}
    path = RESULTS / "verdict" / "first-split.json"
    path.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    with computing_on(CPU), granted_threads(1):
        main()
