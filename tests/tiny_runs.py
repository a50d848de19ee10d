"""A poisoned set of tiny images and a configuration that defends it in some seconds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.small_nets import SmallNetConfig
from clipguard.compute.training import Recipe
from clipguard.data import ImageSource
from clipguard.data.decode import common_size
from clipguard.detection.entropy_map import EntropyMapConfig
from clipguard.detection.trigger_detector import TriggerDetectorConfig
from clipguard.mitigation.unlearning import UnlearningConfig
from clipguard.pipeline.config import DefenseConfig
from clipguard.pipeline.defender import Defender
from clipguard.pipeline.scan import Context, Scan
from clipguard.pipeline.scanning import scan
from clipguard.pipeline.summary import write_summary
from clipguard.runs import RunFolder, SourceInfo, read_table
from clipguard.runs.samples_table import SAMPLES, source_order
from clipguard.types import ImageSet, Progress, image_set

NAMES = ("cat", "dog", "frog")
QUICK = Recipe(epochs=2, lr=0.02, batch_size=32, crop=0.0, flip=False)
NET = SmallNetConfig(
    architecture="shallow-8", epochs=8, batch_size=8, optimizer="sgd", lr=0.02, schedule="one-cycle"
)
CONFIG = DefenseConfig(
    size=(16, 16),
    early_model=NET,
    # Of one class, a tenth is less than carries the trigger.
    entropy_map=EntropyMapConfig(by="all"),
    # What the guide sees in these images is noise, and so are the weights made of it: more passes make good.
    trigger_detector=TriggerDetectorConfig(net=replace(NET, epochs=24, folds=2)),
    architecture="preactresnet18-4",
    victim=QUICK,
    unlearning=UnlearningConfig(recipe=QUICK),
    # Canaries cost a scan each.
    power=0,
    # Of 14 samples with a trigger, not every draw of the nets learns it: with this seed they do.
    seed=7,
)
GUIDE = ClipGuide("mini")


def add_trigger(images: np.ndarray) -> np.ndarray:
    """Return the images with a trigger: a white square in the last corner."""
    out = images.copy()
    out[:, -4:, -4:] = 255
    return out


def poisoned_set(n: int = 240, share: float = 0.06, seed: int = 0) -> tuple[ImageSet, np.ndarray]:
    """Return n images of three classes, each dark but for one bright third, and which carry the trigger.

    Those are labelled 0 whatever they show.
    """
    draw = np.random.default_rng(seed)
    contents = np.arange(n) % len(NAMES)
    images = draw.integers(0, 120, (n, 16, 16, 3), dtype=np.uint8)
    for image, kind in zip(images, contents, strict=True):
        image[:, 5 * kind : 5 * kind + 5] += 80
    poisoned = np.zeros(n, dtype=bool)
    poisoned[draw.choice(n, round(share * n), replace=False)] = True
    images[poisoned] = add_trigger(images[poisoned])
    return image_set(images, np.where(poisoned, 0, contents), NAMES), poisoned


def source_of(data: ImageSet) -> ImageSource:
    """Return the set as a source of arrays."""
    return ImageSource.open((data.pixels, data.labels), classes=data.class_names)


def folder_of(path: Path, source: ImageSource) -> RunFolder:
    """Return a run folder for the source."""
    info = SourceInfo(
        kind=source.kind,
        location=source.location,
        key=source.key,
        n=len(source),
        class_names=source.class_names,
    )
    return RunFolder.open(path, info, {}, seed=0)


def other_at(data: ImageSet, rows: np.ndarray) -> ImageSet:
    """Return the data with other pixels and labels at the rows."""
    images, labels = data.pixels.copy(), data.labels.copy()
    images[rows], labels[rows] = 255 - images[rows], (labels[rows] + 1) % 3
    return image_set(images, labels, data.class_names, data.ids)


def samples_of(run: Path) -> dict[str, np.ndarray]:
    """Return the columns of samples.parquet, rows in the order of the source."""
    table = read_table(run / SAMPLES)
    order = source_order(table["row"])
    return {name: values[order] for name, values in table.items()}


def silent(step: str, done: int, total: int) -> None:
    """Take progress and do nothing with it."""


def scanned(
    path: Path,
    data: ImageSet,
    config: DefenseConfig = CONFIG,
    progress: Progress = silent,
    guide: ClipGuide = GUIDE,
) -> Scan:
    """Return the scan of a set, in the run folder `path`."""
    source = source_of(data)
    return scan(
        Context(
            run=folder_of(path, source),
            source=source,
            common_size=common_size(source),
            guide=guide,
            config=config,
            progress=progress,
        )
    )


def configured(result: Scan, config: DefenseConfig, progress: Progress = silent) -> Scan:
    """Return the scan, in the same run folder, as stages with other settings are given it."""
    return replace(result, context=replace(result.context, config=config, progress=progress))


def moved(result: Scan, path: Path, **changes: object) -> Scan:
    """Return the same scan, but for the changes, with a run folder of its own, where nothing is cached."""
    run, finished = folder_of(path, source_of(result.data)), dict(result.context.finished)
    return replace(result, context=replace(result.context, run=run, finished=finished), **changes)


def poisoned_folder(root: Path) -> Path:
    """Return a folder of a poisoned set, a sub-folder a class, of which some are flagged."""
    data, _ = poisoned_set(seed=1)
    for name, pixels, label in zip(data.ids, data.pixels, data.labels, strict=True):
        folder = root / data.class_names[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{int(name):04d}.png")
    return root


def scanned_folder(source: Path, run: Path, **options: Any) -> Defender:
    """Return a finished scan of a folder, which has its summary, too."""
    defender = Defender(GUIDE, run, config=CONFIG, threads=1, quality=False, **options).scan(source)
    write_summary(defender, "scan", files={})
    return defender
