"""What a command will take, before it starts: seconds of each step, memory and disk, from a few constants.

It is asked before torch is loaded, which takes seconds. Epochs and sizes come from the very settings that the
nets are trained with; only what one pixel, image or sample costs was measured and stands here.
"""

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from clipguard.compute.cores import cores, threads_of_environment
from clipguard.compute.recipes import DEFAULT_RECIPE
from clipguard.data.decode import sampled_sizes
from clipguard.data.source import ImageSource
from clipguard.detection.drawn_rows import MOST_ROWS
from clipguard.detection.net_configs import EARLY_MODELS, LATER, TriggerDetectorConfig
from clipguard.outputs.steps import Step, rough_range
from clipguard.types import Preprocessing

NOT_MEASURED: Final = "time not measured here"
"""In the place of a time: on a GPU, or with a guide or net whose cost is not known."""

GUIDE_SECONDS: Final = {"mini": 1 / 430, "ViT-B-32": 1 / 15}
"""Of one image on one core that is idle; see the table of devices and threads in `docs/architecture.md`."""

NET_SECONDS: Final = {"shallow-32": 3.0e-7, "preactresnet18-16": 1.44e-6, "preactresnet18-64": 2.5e-5}
"""Of training on one pixel, on one idle core: 3,279, 680 and 39 images a second of 32 x 32."""

START_SECONDS: Final = 3.0
"""Of loading torch and the guide, before the first image."""

PROBE_SECONDS: Final = 4.2e-4
"""Of the probe's own processor time on the machine that all of these were measured on."""

SMALL_BATCH: Final = 1.7
"""Times as long as that for the trigger detector, whose batches are small; by demonstrations on two cores."""

DECODE_SECONDS: Final = 1.3e-8
"""Of one pixel of a JPEG on one core: 394 images of 500 x 375 a second, as torchvision has measured."""

LABEL_SECONDS: Final = 1.5e-4
"""Of one sample in the linear probes."""

QUALITY_SECONDS: Final = 5e-4
"""Of one sample in the search for duplicates, label errors and odd images (docs/quality.md)."""

SPEED_UP: Final = 1.75
"""Of one large training on two idle cores or more."""

EMBEDDING_BYTES: Final = 2048
RECORD_BYTES: Final = 300
"""Of a sample's row in the tables of a run."""

MEMORY: Final = {"mini": 6e8, "ViT-B-32": 1.5e9}
"""Bytes of a process that holds the guide."""

LEARNED_FROM: Final = 0.6
"""Share of the samples that the trigger detector learns from."""

UNLEARNING_PASSES: Final = 5
"""Over the data, as long as feature separation, trigger inversion and unlearning together take."""

MOST_CROWDED: Final = 2.0
"""Times as long as on idle cores, at most, that other programs are said to make it: their load may pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a command is to do.

    Attributes:
        n: images.
        classes: their classes.
        pixels: of a usual image, before it is made smaller.
        view: height and width at which the nets see it.
        guide: its name.
        power: copies with canaries.
        defends: whether a model is repaired, too.
        trains: whether it is trained here first.
        epochs: of that training.
        early_model: name of the early-training model.
        architecture: of the model that is trained or repaired.
    """

    n: int
    classes: int
    pixels: int
    view: tuple[int, int]
    guide: str
    power: int = 1
    defends: bool = False
    trains: bool = True
    epochs: int = DEFAULT_RECIPE.epochs
    early_model: str = "shallow"
    architecture: str = "preactresnet18-16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What it will take: the steps in their order on idle cores, bytes of memory and of disk.

    `timed` says whether the seconds rest on measured constants: not on a GPU, nor with another guide or net.
    `crowded` is how many times as long it takes if the other programs go on as at this moment.
    """

    steps: tuple[Step, ...]
    memory: int | float
    disk: int | float
    timed: bool
    crowded: float = 1.0

    @property
    def seconds(self) -> int | float:
        """All steps together, on idle cores."""
        return sum(step.seconds for step in self.steps)

    @property
    def words(self) -> str:
        """The time as it can be promised: of idle cores, to that beside the other programs."""
        return rough_range(self.seconds, self.crowded * self.seconds) if self.timed else NOT_MEASURED


def view_of(sizes: Sequence[tuple[int, int]], size: tuple[int, int] | None) -> tuple[int, int]:
    """Return the height and width at which the nets see images of these sizes, the commonest one first."""
    if size is not None:
        return size
    return Preprocessing.thumbnail(sizes[0]).size


def common_sizes(source: ImageSource) -> list[tuple[int, int]]:
    """Return sizes of some images, the commonest first.

    Raises:
        ClipguardError: none of them is readable.
    """
    return [size for size, _ in sampled_sizes(source).most_common()]


def estimated(
    work: Workload,
    cores: int,
    busy: int | float = 0.0,
    device: str | None = None,
    slowness: float = 1.0,
) -> Estimate:
    """Return what the work will take.

    Args:
        work: what is to be done.
        cores: that compute.
        busy: cores of the machine that others keep busy.
        device: as `--device` names it; of a GPU nothing is known beforehand.
        slowness: of this machine, see `measured_slowness`.
    """
    lanes = max(1, cores)
    early, detector = _small_nets(work)
    name = work.guide.partition("/")[0]
    guide = GUIDE_SECONDS.get(name, GUIDE_SECONDS["ViT-B-32"])
    steps = [
        Step(
            ("embeddings", "second_embeddings", "images"),
            START_SECONDS + work.n * (guide + DECODE_SECONDS * work.pixels) / lanes,
        ),
        Step(("early_model", "label_flow"), early + LABEL_SECONDS * work.n),
        Step(("trigger_detector",), detector / min(lanes, 2)),
        Step(
            ("removal", "label_flow_refit", "trigger_inversion", "samples", "quality"),
            early / 2 + QUALITY_SECONDS * work.n,
        ),
    ]
    if work.power:
        steps.append(Step(("power",), work.power * (early + detector / min(lanes, 2))))
    if work.defends:
        steps += _repair(work, lanes)
    known = name in GUIDE_SECONDS and work.early_model in EARLY_MODELS
    if work.defends:
        known = known and work.architecture in NET_SECONDS
    return Estimate(
        steps=tuple(Step(step.stages, step.seconds * slowness) for step in steps),
        memory=MEMORY.get(name, MEMORY["ViT-B-32"]) + 2.0 * work.n * RECORD_BYTES,
        disk=work.n * (EMBEDDING_BYTES + RECORD_BYTES + 3.0 * math.prod(work.view)),
        timed=known and not _on_a_gpu(device),
        # Whoever computes gets an equal share of the cores.
        crowded=min(MOST_CROWDED, max(1.0, (busy + lanes) / lanes)),
    )


def _small_nets(work: Workload) -> tuple[float, float]:
    """Return the seconds of early-training model and trigger detector on one core."""
    rows, pixels = min(work.n, MOST_ROWS), math.prod(work.view)
    early = EARLY_MODELS.get(work.early_model, EARLY_MODELS["shallow"])
    passes = early.total_epochs(rows) * LATER * early.runs
    detector = TriggerDetectorConfig()
    learned = int(LEARNED_FROM * rows)
    # Each net learns from all folds but one.
    share = (detector.net.folds - 1) / detector.net.folds
    learned_passes = detector.total_epochs(learned) * share
    return (
        NET_SECONDS[early.architecture] * pixels * rows * passes,
        SMALL_BATCH * NET_SECONDS[detector.net.architecture] * pixels * learned * learned_passes,
    )


def _repair(work: Workload, lanes: int) -> list[Step]:
    cost = NET_SECONDS.get(work.architecture, NET_SECONDS["preactresnet18-16"])
    one_pass = cost * math.prod(work.view) * work.n / (SPEED_UP if lanes > 1 else 1)
    train = [Step(("victim",), one_pass * work.epochs)] if work.trains else []
    stages = ("model_images", "model_trigger_inversion", "feature_separation", "unlearning", "retraining")
    return [*train, Step(stages, one_pass * UNLEARNING_PASSES)]


def _on_a_gpu(device: str | None) -> bool:
    name = device or os.environ.get("CLIPGUARD_DEVICE") or "auto"
    return name.startswith("cuda") or (name == "auto" and Path("/dev/nvidia0").exists())


def measured_slowness() -> float:
    """Return how many times as long this machine takes as the one of the constants, by a probe of some ms.

    The probe's own processor time is measured, the least of several: what others compute meanwhile hardly
    changes it.
    """
    some = np.linspace(0, 1, 1 << 14, dtype=np.float32)
    out, least = np.empty_like(some), math.inf
    for _ in range(7):
        begin = time.thread_time()
        for _ in range(200):
            np.multiply(some, some, out=out)
            np.add(out, some, out=out)
        least = min(least, time.thread_time() - begin)
    return min(4.0, max(0.25, least / PROBE_SECONDS))


def usable_cores(threads: int | None) -> tuple[int, float]:
    """Return the cores that compute, and how many others of the machine keep busy."""
    there, chosen = cores(), threads or threads_of_environment()
    try:
        busy = os.getloadavg()[0]
    except (AttributeError, OSError):  # elsewhere than on Linux
        busy = 0.0
    return min(chosen or there, there), max(0.0, busy - max(0, there - (chosen or there)))


def rough_size(count: int | float) -> str:
    """Return bytes in the unit that people use, with two digits."""
    unit, size = next(
        (unit, size)
        for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3), ("bytes", 0.0))
        if count >= size
    )
    number = count / (size or 1)
    return f"{number:.1f} {unit}" if size and number < 10 else f"{number:,.0f} {unit}"


def first_line(work: Workload, estimate: Estimate, out: Path) -> str:
    """Return the line that says what is to be done, and what it takes."""
    size = rough_size(estimate.disk)
    return f"{work.n:,} images, {work.classes:,} classes, {estimate.words}, {size} in {out}"
