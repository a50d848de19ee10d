"""What label flow flags in a class that a trigger explains in part, with the probe's word and without it.

    python benchmarks/labels_beside_triggers.py     -> results/ablation/labels-beside-triggers.json

CIFAR-10 rows 40,000-49,999, and the development rows of CIFAR-100, as they are and with each five classes as
one, which the probe hardly reads. Half of the poison is taken as flagged for a trigger; the rest is left to
label flow, whose target is the poisoned class. No net is trained.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.threads import one_thread
from clipguard.detection.entropy_map import label_nll
from clipguard.detection.label_flow import (
    LabelFlow,
    LabelFlowConfig,
    LabelView,
    has_learned_trigger,
    label_only_poison,
    refitted_label_flow,
)
from clipguard.detection.linear_probe import linear_probe
from clipguard.lab.attacks import attack_named
from clipguard.lab.benchmark.machine import commit, machine
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.seeds import Seed
from clipguard.types import ImageSet, chunks, image_set
from runners import RESULTS
from verdict_draws import CIFAR10, CIFAR100, Draw, guide_for, read

FILE = RESULTS / "ablation" / "labels-beside-triggers.json"
CONFIG = LabelFlowConfig()
ATTACKS = {"badnets": 0.01, "blended": 0.02, "sig": 0.02, "wanet": 0.04}
FEWER = 5
"""Classes of CIFAR-100 that are one."""


def coarse(data: ImageSet) -> ImageSet:
    """Return the data with each `FEWER` classes as one, which is named like the first of them."""
    return image_set(data.pixels, data.labels // FEWER, data.class_names[::FEWER], data.ids)


def draws() -> Iterator[tuple[str, ImageSet, PoisonTruth, ClipGuide]]:
    """Yield name, data, truth and guide of each draw."""
    sets = {"CIFAR-10": CIFAR10, "CIFAR-100": CIFAR100, "CIFAR-100, 20 classes": CIFAR100}
    for title, (name, rows) in sets.items():
        draw = Draw(data=name, rows=rows)
        data = coarse(read(draw)) if "20" in title else read(draw)
        for attack, rate in ATTACKS.items():
            # A class of CIFAR-100 has 60 samples: less than a wave at this rate would need.
            if title == "CIFAR-100" and attack == "sig":
                continue
            for seed in range(2):
                fitted = attack_named(attack, rate=rate, target=3 + seed).fit(
                    data, Seed(seed), None, lambda step, done, total: None
                )
                yield (
                    f"{title}: {attack}, {seed}",
                    *fitted.poison(data, Seed(seed).child("attack")),
                    guide_for(draw),
                )


def measured(data: ImageSet, truth: PoisonTruth, guide: ClipGuide, seed: Seed) -> dict[str, Any]:
    """Return what label flow flags of a draw by either rule, and what the probe says of the class."""
    pixels, k, labels = data.pixels, len(data.class_names), data.labels
    embeddings = np.concatenate([guide.clip.embed_images(pixels[part]) for part in chunks(len(pixels))])
    poison = np.flatnonzero(truth.poisoned)
    explained = seed.generator().permutation(poison)[: len(poison) // 2]
    unexplained = np.ones(len(data), dtype=bool)
    unexplained[explained] = False
    view = LabelView(
        labels=labels,
        num_classes=k,
        guide_nll=label_nll(guide.logits(embeddings, data.class_names), labels),
        unexplained=unexplained,
    )
    target = np.arange(k) == truth.target
    probe = linear_probe(embeddings, labels, ~np.ones(k, bool), ~np.ones(len(data), bool), seed)
    flow = label_only_poison(view, probe, CONFIG, target)
    # Without its word on the explained samples, the probe is asked as if it doubted them all.
    unasked = np.where(unexplained, probe.likeliest, (labels + 1) % k)
    without = label_only_poison(view, probe._replace(likeliest=unasked), CONFIG, target)
    right, inside = probe.likeliest == labels, labels == truth.target
    return {
        "poison": int(truth.poisoned.sum()),
        "explained": int((~unexplained).sum()),
        "class": int((inside & ~truth.poisoned).sum()),
        "believes_explained": float(right[~unexplained].mean()),
        "believes_rest": float(right[inside & unexplained].mean()),
        "believed": bool(has_learned_trigger(view, probe)[truth.target]),
        "flagged": _flags(flow, embeddings, view, truth, seed),
        "flagged_unasked": _flags(without, embeddings, view, truth, seed),
    }


def _flags(
    flow: LabelFlow, embeddings: np.ndarray, view: LabelView, truth: PoisonTruth, seed: Seed
) -> dict[str, int]:
    """Return how many unexplained samples of a draw are flagged, and how many of these are poisoned."""
    if flow.flagged.any():
        flow = refitted_label_flow(embeddings, view, flow, CONFIG, seed)
    return {"all": int(flow.flagged.sum()), "right": int((flow.flagged & truth.poisoned).sum())}


def main() -> None:
    """Measure every draw, and write and print all."""
    results = {}
    for name, data, truth, guide in draws():
        results[name] = measured(data, truth, guide, Seed(0))
        print(name, results[name], flush=True)
    about = {
        "command": "python benchmarks/labels_beside_triggers.py",
        "commit": commit(),
        "machine": machine(),
    }
    FILE.write_text(json.dumps({**about, "draws": results}, indent=1) + "\n")


if __name__ == "__main__":
    with one_thread():
        main()
