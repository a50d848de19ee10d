"""Draw docs/entropy-map.svg: the entropy map of a finished cell of the table, with the true poison marked.

    python benchmarks/picture.py badnets 0

Needed for the next tables, and for the published picture.
"""

import sys
from pathlib import Path

import numpy as np

from clipguard.outputs.report import entropy_map, entropy_map_svg
from clipguard.outputs.samples import read_samples
from runners import runners

MARKED = 150


def main() -> None:
    """Write the picture of the cell named on the command line."""
    attack, seed = sys.argv[1], int(sys.argv[2])
    runner = next(r for r in runners("table-cifar10") if (r.cell.attack.name, r.cell.seed) == (attack, seed))
    _, truth = runner.poisoned
    samples, partition = read_samples(
        next(runner.case().run_dir.rglob("samples.parquet")).parent, order="source"
    )
    poisoned = np.flatnonzero(truth.poisoned)
    marked = poisoned[:: max(1, len(poisoned) // MARKED)]
    drawn = entropy_map(
        samples["guide_rank"],
        samples["early_rank"],
        partition,
        marked=marked,
        marked_as=f"{len(marked)} of the {len(poisoned)} poisoned samples",
    )
    target = Path(__file__).resolve().parents[1] / "docs" / "entropy-map.svg"
    target.write_text(
        entropy_map_svg(drawn, title=f"Entropy map: CIFAR-10, {len(truth.poisoned):,} images, {attack} 5 %")
    )


if __name__ == "__main__":
    main()
