"""A scan: one signal after another moves the partition. Each signal is a function from scan to scan."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Final

import numpy as np

from clipguard.detection.entropy_map import entropy_map, first_partition
from clipguard.detection.label_flow import LabelFlow, with_label_flags
from clipguard.detection.trigger_detector import refine
from clipguard.detection.trigger_inversion import assigned
from clipguard.pipeline.computing import Resized, first_label_flow
from clipguard.pipeline.scan import Context, Scan
from clipguard.pipeline.stages import (
    EARLY_MODEL,
    LABEL_FLOW,
    LABEL_FLOW_REFIT,
    READ,
    SAMPLES,
    TRIGGER_DETECTOR,
    TRIGGER_INVERSION,
    VIEW,
)
from clipguard.runs import Stage, read_array, read_image_set
from clipguard.triggers.affine import read_triggers
from clipguard.types import EntropyMap, ImageSet, Preprocessing, Scores, State, partition_of

THUMBNAIL: Final = Preprocessing(size=(1, 1))
"""How the first pass reads images, at whatever size."""

Signal = Callable[[Scan], Scan]
"""Returns the scan with the partition moved; further columns of samples.parquet go into `columns`."""


def map_entropy(scan: Scan) -> Scan:
    """Return the scan with both losses of every label and the first partition."""
    context = scan.context
    context.finish(EARLY_MODEL, scan)
    logits = context.array("early_model", "logits.npy")
    early = Scores(logits=logits, scale=1.0, source="early-training model")
    entropy = entropy_map(scan.guide, early, scan.data.labels)
    partition = first_partition(entropy, scan.data.labels, scan.num_classes, context.config.entropy_map)
    return replace(scan, entropy=entropy, partition=partition, columns={**scan.columns, **asdict(entropy)})


def detect_triggers(scan: Scan) -> Scan:
    """Return the scan in which only what carries a trigger is flagged."""
    context = scan.context
    context.finish(TRIGGER_DETECTOR, scan)
    probability = context.array("trigger_detector", "probability.npy")
    partition = refine(scan.partition, probability, context.config.trigger_detector)
    return replace(scan, partition=partition, columns={**scan.columns, "trigger_score": probability})


def follow_labels(scan: Scan) -> Scan:
    """Return the scan in which label-only poison is flagged, too."""
    context = scan.context
    context.finish(LABEL_FLOW, scan)
    flow = first_label_flow(scan)
    if flow.flagged.any():
        folder = context.finish(LABEL_FLOW_REFIT, scan).path
        flow = LabelFlow(*(read_array(folder / f"{name}.npy") for name in LabelFlow._fields))
    partition = with_label_flags(scan.partition, scan.data.labels, flow, context.config.label_flow)
    return replace(scan, partition=partition)


def name_triggers(scan: Scan) -> Scan:
    """Return the scan with the reconstructed triggers, and which of them each sample is flagged for."""
    scan = with_triggers(scan, TRIGGER_INVERSION)
    return replace(scan, partition=assigned(scan.partition, scan.data.labels, scan.triggers))


def with_triggers(scan: Scan, stage: Stage[Any]) -> Scan:
    """Return the scan with the triggers that a stage of trigger inversion reconstructs."""
    return replace(scan, triggers=read_triggers(scan.context.finish(stage, scan).path))


SIGNALS: Final[tuple[Signal, ...]] = (map_entropy, detect_triggers, follow_labels, name_triggers)


def scan(context: Context) -> Scan:
    """Return what all signals say of a source; finished stages are read back, not computed again.

    It writes unreadable.json and samples.parquet into the run folder.

    Raises:
        ClipguardError: unreadable images, a guide that cannot be had, NaN scores.
    """
    read = context.finish(READ, context)
    context.run.publish(read.path / "unreadable.json", "unreadable.json")
    data = read_image_set(read.path)
    guide = context.guide.logits(context.array("read", "embeddings.npy"), data.class_names)
    view = Preprocessing(size=context.config.size or context.thumbnail_size)
    data, key = prepared_for(context, data, view, VIEW)
    result = _unknown(context, data, key, guide)
    for signal in SIGNALS:
        result = signal(result)
    samples = context.finish(SAMPLES, result)
    context.run.publish(samples.path / "samples.parquet", "samples.parquet")
    return result


def is_thumbnail(preprocessing: Preprocessing) -> bool:
    """Return whether images are prepared as thumbnails of that size are, before they are normalised."""
    return replace(preprocessing, mean=THUMBNAIL.mean, std=THUMBNAIL.std, size=THUMBNAIL.size) == THUMBNAIL


def prepared_for(
    context: Context, data: ImageSet, preprocessing: Preprocessing, stage: Stage[Resized]
) -> tuple[ImageSet, str]:
    """Return the images prepared so, and the key of the stage that holds them: `stage`, or the first pass."""
    if context.thumbnail_size == preprocessing.size and is_thumbnail(preprocessing):
        return data, context.finished["read"].key
    finished = context.finish(stage, Resized(context=context, data=data, preprocessing=preprocessing))
    return replace(data, images=read_array(finished.path / "images.npy", mmap=True)), finished.key


def _unknown(context: Context, data: ImageSet, key: str, guide: Scores) -> Scan:
    """Return a scan before its first signal."""
    nothing = np.zeros(len(data))
    return Scan(
        context=context,
        data=data,
        images_key=key,
        guide=guide,
        entropy=EntropyMap(guide_nll=nothing, early_nll=nothing, guide_rank=nothing, early_rank=nothing),
        partition=partition_of(np.full(len(data), State.UNCERTAIN, np.uint8), nothing, len(data.class_names)),
        columns={},
    )
