"""Draw docs/entropy-map.svg: the entropy map of a finished cell, with the true poison marked.

python benchmarks/picture.py table:badnets:0
"""

import sys
from pathlib import Path

import numpy as np

from clipguard.report.plot import entropy_map, entropy_map_svg
from clipguard.store import read_table
from protocol import CACHE, PROTOCOLS, Cell

SHOWN = 150


def main() -> None:
    """Write the picture of the cell named on the command line."""
    protocol, attack, seed = sys.argv[1].split(":")
    _, truth = Cell(attack=attack, seed=int(seed), rows=PROTOCOLS[protocol]).poisoned()
    samples = read_table(CACHE / "runs" / f"{protocol}-{attack}-{seed}" / "samples.parquet")
    poisoned = np.flatnonzero(truth.poisoned)
    marked = poisoned[:: max(1, len(poisoned) // SHOWN)]
    drawn = entropy_map(
        samples["guide_rank"],
        samples["suspect_rank"],
        samples["is_clean"],
        samples["is_triggered"],
        marked=marked,
        marked_as=f"{len(marked)} of the {len(poisoned)} poisoned samples",
    )
    target = Path(__file__).resolve().parents[1] / "docs" / "entropy-map.svg"
    target.write_text(
        entropy_map_svg(drawn, title=f"Entropy map: CIFAR-10, {len(truth.poisoned):,} images, {attack} 5 %")
    )


if __name__ == "__main__":
    main()
