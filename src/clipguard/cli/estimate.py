"""What a command will take, before it starts: seconds of each step, memory and disk, from a few constants.

It is asked before torch is loaded, which takes seconds. So what it has to know of the nets stands here, too;
`tests/test_cli_estimate.py` compares both.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from clipguard.data.decode import sampled_sizes
from clipguard.data.source import ImageSource
from clipguard.outputs.steps import Step, rough_time

GUIDE_SECONDS: Final = {"mini": 1 / 430, "ViT-B-32": 1 / 15}
"""Of one image on one core that is idle; see the table of devices and threads in `docs/architecture.md`."""

NET_SECONDS: Final = {"shallow-32": 3.0e-7, "preactresnet18-16": 1.44e-6, "preactresnet18-64": 2.5e-5}
"""Of training on one pixel, on one idle core: 3,279, 680 and 39 images a second of 32 x 32."""

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

MOST_ROWS: Final = 100_000
EARLY_STEPS, EARLY_BATCH, EARLY_EPOCHS, LATER = 300, 64, 5, 3
DETECTOR_STEPS, DETECTOR_BATCH, DETECTOR_EPOCHS = 600, 32, 6
REFINEMENTS, REFINEMENT_EPOCHS = 3, 3
LEARNED_FROM: Final = 0.6
"""Share of the samples that the trigger detector learns from."""

VICTIM_EPOCHS: Final = 25
UNLEARNING_PASSES: Final = 5
LARGEST_THUMBNAIL: Final = 64


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
    """

    n: int
    classes: int
    pixels: int
    view: tuple[int, int]
    guide: str
    power: int = 1
    defends: bool = False
    trains: bool = True
    epochs: int = VICTIM_EPOCHS
    early_model: str = "shallow"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What it will take: the steps in their order, bytes of memory and of disk.

    `timed` says whether the seconds rest on measured constants: not on a GPU, nor with another guide or net.
    """

    steps: tuple[Step, ...]
    memory: int | float
    disk: int | float
    timed: bool

    @property
    def seconds(self) -> int | float:
        """All steps together."""
        return sum(step.seconds for step in self.steps)


def view_of(sizes: Sequence[tuple[int, int]], size: tuple[int, int] | None) -> tuple[int, int]:
    """Return the height and width at which the nets see images of these sizes, the commonest one first."""
    if size is not None:
        return size
    height, width = sizes[0]
    shrink = min(1.0, LARGEST_THUMBNAIL / max(height, width))
    return max(8, round(height * shrink)), max(8, round(width * shrink))


def common_sizes(source: ImageSource) -> list[tuple[int, int]]:
    """Return sizes of some images, the commonest first.

    Raises:
        ClipguardError: none of them is readable.
    """
    return [size for size, _ in sampled_sizes(source).most_common()]


def estimated(work: Workload, cores: int, busy: int | float = 0.0, device: str | None = None) -> Estimate:
    """Return what the work will take.

    Args:
        work: what is to be done.
        cores: that compute.
        busy: cores of the machine that others keep busy.
        device: as `--device` names it; of a GPU nothing is known beforehand.
    """
    lanes = max(1, cores)
    # Whoever computes gets an equal share of the cores.
    slow = max(1.0, (busy + lanes) / lanes)
    early, detector = _small_nets(work)
    name = work.guide.partition("/")[0]
    guide = GUIDE_SECONDS.get(name, GUIDE_SECONDS["ViT-B-32"])
    steps = [
        Step(
            ("embeddings", "second_embeddings", "images"),
            work.n * (guide + DECODE_SECONDS * work.pixels) / lanes,
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
    known = name in GUIDE_SECONDS and work.early_model in ("shallow", "residual", "cgd")
    return Estimate(
        steps=tuple(Step(step.stages, step.seconds * slow) for step in steps),
        memory=MEMORY.get(name, MEMORY["ViT-B-32"]) + 2.0 * work.n * RECORD_BYTES,
        disk=work.n * (EMBEDDING_BYTES + RECORD_BYTES + 3.0 * math.prod(work.view)),
        timed=known and not _on_a_gpu(device),
    )


def _small_nets(work: Workload) -> tuple[float, float]:
    """Return the seconds of early-training model and trigger detector on one core."""
    rows, pixels = min(work.n, MOST_ROWS), math.prod(work.view)
    shallow = NET_SECONDS["shallow-32"] * pixels
    early = shallow * rows * early_epochs(rows)
    if work.early_model == "cgd":
        early = NET_SECONDS["preactresnet18-64"] * pixels * rows * EARLY_EPOCHS * LATER * 3
    learned = LEARNED_FROM * rows
    # Two nets learn from one half each.
    detector = (
        SMALL_BATCH * shallow * learned * (detector_epochs(int(learned)) + REFINEMENTS * REFINEMENT_EPOCHS)
    )
    return early, detector


def early_epochs(rows: int) -> int:
    """Return the epochs of the early-training model."""
    return LATER * max(EARLY_EPOCHS, math.ceil(EARLY_STEPS / max(1, math.ceil(rows / EARLY_BATCH))))


def detector_epochs(rows: int) -> int:
    """Return the epochs of the first round of the trigger detector."""
    steps = max(1, math.ceil(rows // 2 / DETECTOR_BATCH))
    return max(DETECTOR_EPOCHS, math.ceil(DETECTOR_STEPS / steps))


def _repair(work: Workload, lanes: int) -> list[Step]:
    one_pass = (
        NET_SECONDS["preactresnet18-16"] * math.prod(work.view) * work.n / (SPEED_UP if lanes > 1 else 1)
    )
    train = [Step(("victim",), one_pass * work.epochs)] if work.trains else []
    stages = ("model_images", "model_trigger_inversion", "feature_separation", "unlearning", "retraining")
    return [*train, Step(stages, one_pass * UNLEARNING_PASSES)]


def _on_a_gpu(device: str | None) -> bool:
    name = device or os.environ.get("CLIPGUARD_DEVICE") or "auto"
    return name.startswith("cuda") or (name == "auto" and Path("/dev/nvidia0").exists())


def usable_cores(threads: int | None) -> tuple[int, float]:
    """Return the cores that compute, and how many others of the machine keep busy."""
    named = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    chosen = threads or (int(named) if named.isdecimal() else 0)
    try:
        there = len(os.sched_getaffinity(0))
        busy = os.getloadavg()[0]
    except (AttributeError, OSError):  # elsewhere than on Linux
        there, busy = os.cpu_count() or 1, 0.0
    return max(1, min(chosen or there, there)), max(0.0, busy - max(0, there - (chosen or there)))


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
    time = rough_time(estimate.seconds) if estimate.timed else "time is told after the first step"
    return f"{work.n:,} images, {work.classes:,} classes, {time}, {rough_size(estimate.disk)} in {out}"
