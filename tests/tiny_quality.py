"""Real photographs with known issues of data quality, and what the stage says of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipguard.data import ImageSource
from clipguard.data.decode import common_size, read_images
from clipguard.pipeline.quality_stage import QUALITY_FILE, read_counts
from clipguard.pipeline.scan import Context, Scan
from clipguard.pipeline.scanning import read
from clipguard.pipeline.stages import QUALITY
from clipguard.runs import read_table
from clipguard.runs.summary import QualitySummary
from clipguard.types import EntropyMap, ImageSet, Preprocessing, State, partition_of
from tiny_runs import CONFIG, GUIDE, folder_of, silent

CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar10" / "train.parquet"
NAMES = ("frog", "horse", "ship")


def photographs(per_class: int = 100) -> ImageSet:
    """Return so many photographs of three classes that no two share."""
    if not CIFAR.exists():
        pytest.skip("shared/data/cifar10 is missing: data quality is not tested on photographs")
    data = read_images(ImageSource.open(CIFAR, rows=(40_000, 42_000)), Preprocessing(size=(32, 32)))[0]
    numbers = [data.class_names.index(name) for name in NAMES]
    rows = np.concatenate([np.flatnonzero(data.labels == number)[:per_class] for number in numbers])
    kept = data.take(np.sort(rows))
    return ImageSet(
        images=kept.images,
        labels=np.searchsorted(numbers, kept.labels),
        ids=kept.ids,
        class_names=NAMES,
        fingerprint=kept.fingerprint,
    )


def write_folder(root: Path, data: ImageSet) -> Path:
    """Return a folder of lossless files, one a photograph, named by its row."""
    for row, (pixels, label) in enumerate(zip(data.pixels, data.labels, strict=True)):
        path = root / data.class_names[label] / f"{row:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


def assessed(
    path: Path, source: ImageSource, flagged: tuple[int, ...] = ()
) -> tuple[dict[str, np.ndarray], QualitySummary]:
    """Return the table and the counts of the stage, run in the folder `path` without the scan before it."""
    context = Context(
        run=folder_of(path, source),
        source=source,
        common_size=common_size(source),
        guide=GUIDE,
        # The thresholds of its tests are of this seed.
        config=replace(CONFIG, seed=2),
        progress=silent,
        quality=True,
    )
    data, key = read(context)
    n, nothing = len(data), np.zeros(len(data))
    state = np.full(n, State.UNCERTAIN, np.uint8)
    state[list(flagged)] = State.LABEL
    scan = Scan(
        context=context,
        data=data,
        images_key=key,
        guide=GUIDE.logits(context.embeddings, data.class_names),
        likeliest=np.zeros(n, np.int64),
        entropy=EntropyMap(guide_nll=nothing, early_nll=nothing, guide_rank=nothing, early_rank=nothing),
        partition=partition_of(state, nothing, len(data.class_names)),
        columns={},
    )
    stage = context.finish(QUALITY, scan)
    return read_table(stage.path / QUALITY_FILE), read_counts(stage.path)


def of_kind(table: dict[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    """Return the rows of the table with one issue."""
    return {name: values[table["issue"] == kind] for name, values in table.items()}
