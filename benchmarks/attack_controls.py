"""What the victims of CIFAR-10 answer to: their trigger, and inputs that share a part of it.

    python benchmarks/attack_controls.py

Victims and fitted attacks are those of `table-cifar10.toml`, seed 0,
and come from the cache that has computed it. Each share is of the first test images outside the target's
class, 1,200 at most, that the victim calls the target. Written to benchmarks/results/attack-controls.json.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from clipguard.compute.inference import classifier_logits
from clipguard.lab.benchmark.cells import CellRunner
from clipguard.lab.benchmark.machine import commit, machine
from clipguard.seeds import Seed
from runners import RESULTS, runners

MOST = 1200
"""Test images."""
SHIFT = 37
"""Places by which the images are moved round, so that each is given the change of another one."""


def main() -> None:
    """Measure each victim."""
    by_attack = {one.cell.attack.name: one for one in runners("table-cifar10") if one.cell.seed == 0}
    shares = {name: dict(inputs(name, by_attack[name])) for name in CONTROLS}
    results = {"shares": shares, "images": MOST, "seed": 0, "commit": commit(), "machine": machine()}
    (RESULTS / "attack-controls.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(shares, indent=1))


def inputs(name: str, runner: CellRunner) -> Iterator[tuple[str, float]]:
    """Yield what is shown to a victim, in words, and the share that it calls the target."""
    attack: Any = runner.attack
    test = runner.sets[1]
    led = attack.target_labels(test.labels, len(test.class_names))
    rows = np.flatnonzero(led != test.labels)[:MOST]
    images = np.asarray(test.images[rows])
    model = runner.victim.trained[0]
    triggered = np.asarray(attack.trigger(images))
    change = triggered.astype(float) - images
    shown = {"without a trigger": images, "its trigger": triggered, **CONTROLS[name](attack, images, change)}
    for words, some in shown.items():
        yield words, float((classifier_logits(model, some).argmax(1) == attack.target).mean())
    yield (
        "energy of the change that all images share",
        float((change.mean(0) ** 2).sum() / (change**2).mean(0).sum()),
    )


def changed(images: Any, change: Any) -> Any:
    """Return images with a change, in whole grey levels."""
    return np.clip(np.rint(images + change), 0, 255).astype(np.uint8)


CONTROLS = {
    "ssba": lambda attack, images, change: {
        "the mean change alone": changed(images, change.mean(0)),
        "the change of another image": changed(images, np.roll(change, SHIFT, 0)),
    },
    "gcb": lambda attack, images, change: {
        "one shift of colour alone": changed(images, change.mean((0, 1, 2))),
    },
    "flip": lambda attack, images, change: {
        "its trigger as published": attack.stripes(images, attack.strength),
    },
    "bpp": lambda attack, images, change: {
        "the change of another image": changed(images, np.roll(change, SHIFT, 0)),
    },
    "input-aware": lambda attack, images, change: {
        "the trigger of another image": attack.crossed(images, np.roll(images, SHIFT, 0)),
    },
    "wanet": lambda attack, images, change: {
        "a warp with noise": attack._warped(images, Seed(5)),
    },
}
"""By attack: other inputs than those with its trigger."""


if __name__ == "__main__":
    main()
