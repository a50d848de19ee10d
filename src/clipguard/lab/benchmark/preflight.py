"""What is checked before anything is trained: data, targets, mappings, nets and guides of all cells."""

from collections.abc import Sequence

import numpy as np

from clipguard.errors import ClipguardError
from clipguard.lab.attacks import parts_of
from clipguard.lab.benchmark.cells import BenchmarkPaths, attack_of, sources
from clipguard.lab.benchmark.config import Cell
from clipguard.lab.benchmark.guides import guide_of
from clipguard.models.spec import ModelSpec, build
from clipguard.seeds import Seed


def preflight(cells: Sequence[Cell], paths: BenchmarkPaths, guided: bool) -> None:
    """Check that every cell can begin. A cell checks by itself what depends on its data, such as the rate.

    Args:
        cells: those to compute.
        paths: where data and guides are looked for.
        guided: whether any row needs the guide, which is then loaded.

    Raises:
        ClipguardError: data or guide that cannot be had, train and test of other classes, a target that is no
            class, an unknown mapping or architecture; with the name of what is wrong.
    """
    classes = {
        data: len(sources(data, paths)[0].class_names) for data in dict.fromkeys(c.data for c in cells)
    }
    for cell in cells:
        _check_target(cell, classes[cell.data])
    for cell in {cell.net: cell for cell in cells}.values():
        spec = ModelSpec(architecture=cell.net, num_classes=classes[cell.data], input_size=(32, 32))
        build(spec, Seed(0))
    for guide in dict.fromkeys(cell.guide for cell in cells) if guided else ():
        _ = guide_of(guide, paths.cache / "embeddings", paths.beside).clip


def _check_target(cell: Cell, k: int) -> None:
    for part in parts_of(attack_of(cell)):
        # All-to-all has other target labels than the target.
        labels = part.target_labels(np.arange(k), k)
        if labels is not None and not np.isin(labels, np.arange(k)).all():
            raise ClipguardError(
                f"target {part.target} of {cell.attack.name} is no class of {cell.data.name}: choose one of "
                f"0 to {k - 1}"
            )
