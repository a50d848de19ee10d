"""Draw docs/attacks.png: CIFAR-10 test images without and with each trigger, and ten times the change.

    python benchmarks/attack_pictures.py [NAME]...

Without names, all attacks. They are fitted, or taken from the cache, as in cell 0 of the table. Reproduces
the published picture.
"""

import math
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from clipguard.lab.attacks import ATTACKS
from clipguard.lab.benchmark.cells import CellRunner
from clipguard.lab.benchmark.config import AttackChoice
from clipguard.types import Images
from runners import runners

TARGET = Path(__file__).resolve().parents[1] / "docs" / "attacks.png"
IMAGES = 4
COLUMNS = 4
GAP = 2
GREY = 215
"""Of the page: a white one would hide white triggers."""
PAGE = {"layout": "constrained", "facecolor": (GREY / 255,) * 3}
LIMIT = 400_000


def strip(images: Images) -> np.ndarray:
    """Return the images side by side with gaps of the page's grey."""
    padded = np.pad(images, ((0, 0), (GAP, 0), (0, GAP), (0, 0)), constant_values=GREY)
    return np.concatenate(list(padded), axis=1)


def block(clean: Images, triggered: Images) -> np.ndarray:
    """Return three strips below each other: clean, triggered, ten times their distance."""
    change = np.abs(triggered.astype(int) - clean) * 10
    return np.concatenate([strip(part) for part in (clean, triggered, change.clip(0, 255).astype(np.uint8))])


def main() -> None:
    """Write the picture."""
    seed_0 = [runner for runner in runners("table-cifar10") if runner.cell.seed == 0]
    by_attack = {one.cell.attack.name: one for one in seed_0 if not one.cell.attack.options}
    first = by_attack["badnets"]
    clean = first.sets[1].images[:IMAGES]
    blocks = {}
    for name in sys.argv[1:] or ATTACKS:
        cell = replace(first.cell, attack=AttackChoice(name=name))
        runner = by_attack.get(name) or CellRunner(cell, first.paths, first.reference_seeds)
        if (triggered := runner.attack.trigger(clean)) is not None:
            blocks[name] = block(clean, triggered)
    lines = math.ceil(len(blocks) / COLUMNS)
    figure, axes = plt.subplots(lines, COLUMNS, figsize=(2.8 * COLUMNS, 2.4 * lines), squeeze=False, **PAGE)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, picture) in zip(axes.flat, blocks.items(), strict=False):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(name, fontsize=11)
    figure.suptitle("Test images of CIFAR-10: clean, with the trigger, and ten times the change", fontsize=12)
    figure.savefig(TARGET, dpi=100)
    size = TARGET.stat().st_size
    print(f"{TARGET.name}: {len(blocks)} attacks, {size:,} bytes")
    assert size < LIMIT, f"{TARGET.name} is larger than {LIMIT:,} bytes: show fewer images"


if __name__ == "__main__":
    main()
