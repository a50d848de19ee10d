"""A scan: one signal after another moves the partition. Each signal is a function from scan to scan."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, Final

import numpy as np

from clipguard.data.provenance import UNREADABLE, recorded_source
from clipguard.detection.class_evidence import FEWEST_SAMPLES, with_evidence
from clipguard.detection.competence import second_axis
from clipguard.detection.entropy_map import entropy_map, first_partition, opinion
from clipguard.detection.label_flow import LabelFlow, label_q_values, with_label_flags
from clipguard.detection.removal import agreements, causes
from clipguard.detection.trigger_detector import refine
from clipguard.detection.trigger_inversion import assigned
from clipguard.pipeline.baseline import mark_new
from clipguard.pipeline.computing import Reading, View, first_label_flow
from clipguard.pipeline.guide_check import with_comparisons
from clipguard.pipeline.judging import evidence_of, read_beliefs, read_outcomes, scores_of
from clipguard.pipeline.quality_stage import QUALITY_FILE
from clipguard.pipeline.reviewing import record_reviews, with_reviews
from clipguard.pipeline.samples import FLAGGED_NAMES, FLAGGED_TABLE
from clipguard.pipeline.scan import Context, Scan
from clipguard.pipeline.stages import (
    EARLY_MODEL,
    EMBEDDINGS,
    IMAGES,
    LABEL_FLOW,
    LABEL_FLOW_REFIT,
    MODEL_IMAGES,
    POWER,
    QUALITY,
    REMOVAL,
    SAMPLES,
    SECOND_EMBEDDINGS,
    TRIGGER_DETECTOR,
    TRIGGER_INVERSION,
)
from clipguard.runs import ShardedArray, Stage, read_array
from clipguard.runs.samples_table import SAMPLES as SAMPLES_FILE
from clipguard.triggers.affine import read_triggers
from clipguard.types import EntropyMap, ImageSet, Preprocessing, Scores, State, partition_of

Signal = Callable[[Scan], Scan]
"""Returns the scan with the partition moved; further columns of samples.parquet go into `columns`."""


def map_entropy(scan: Scan) -> Scan:
    """Return the scan with both losses of every label and the first partition."""
    context = scan.context
    context.finish(EARLY_MODEL, scan)
    guide_nll, likeliest = opinion(scan.guide, scan.data.labels)
    entropy = entropy_map(guide_nll, context.array("early_model", "early_nll.npy"))
    context.finish(LABEL_FLOW, scan)
    loss, probe_class = (context.array("label_flow", f"{name}.npy") for name in ("loss", "likeliest"))
    axis = second_axis(scan.data.labels, likeliest, loss, probe_class)
    partition = first_partition(entropy, scan.data.labels, scan.num_classes, context.config.entropy_map, axis)
    columns = {field.name: getattr(entropy, field.name) for field in fields(entropy)}
    return replace(
        scan,
        likeliest=likeliest,
        entropy=entropy,
        partition=partition,
        columns={**scan.columns, **columns},
    )


def detect_triggers(scan: Scan) -> Scan:
    """Return the scan in which only what carries a trigger is flagged."""
    context = scan.context
    context.finish(TRIGGER_DETECTOR, scan)
    probability = context.array("trigger_detector", "probability.npy")
    partition = refine(scan.partition, probability, context.config.trigger_detector)
    return replace(scan, partition=partition, columns={**scan.columns, "trigger_score": probability})


def judge_triggers(scan: Scan) -> Scan:
    """Return the scan in which only classes are flagged whose tests stand out, and not by nature."""
    context = scan.context
    tests = evidence_of(scan, scores := scores_of(scan))
    scan = replace(scan, tests=tests, partition=with_evidence(scan.partition, tests))
    both = read_beliefs(context.finish(REMOVAL, scan).path) if tests.flagged.any() else ()
    q_value = tests.q_value
    if both:
        scan = replace(scan, beliefs=both, causes=causes(both, agreements(scores, tests.flagged)))
        natural = [one.label for one, cause in zip(both, scan.causes, strict=True) if cause == "natural"]
        by_nature = np.isin(scan.data.labels, natural)
        q_value = np.where(by_nature, 1.0, q_value)
        released = tests.flagged & by_nature
        scan = replace(scan, partition=scan.partition.moved(released, State.UNCERTAIN))
    return replace(scan, columns={**scan.columns, "q_value": q_value})


def follow_labels(scan: Scan) -> Scan:
    """Return the scan in which label-only poison is flagged, too, unless the samples are too few to judge."""
    if len(scan.data) < FEWEST_SAMPLES:
        return scan
    context = scan.context
    flow = first_label_flow(scan)
    if flow.flagged.any():
        folder = context.finish(LABEL_FLOW_REFIT, scan).path
        flow = LabelFlow(*(read_array(folder / f"{name}.npy") for name in LabelFlow._fields))
    partition = with_label_flags(scan.partition, scan.data.labels, flow, context.config.label_flow)
    q_value = np.minimum(scan.columns["q_value"], label_q_values(partition, scan.data.labels, flow.loss))
    return replace(scan, partition=partition, columns={**scan.columns, "q_value": q_value})


def name_triggers(scan: Scan) -> Scan:
    """Return the scan with the reconstructed triggers, and which of them each sample is flagged for."""
    scan = with_triggers(scan, TRIGGER_INVERSION)
    return replace(scan, partition=assigned(scan.partition, scan.data.labels, scan.triggers))


def with_triggers(scan: Scan, stage: Stage[Any]) -> Scan:
    """Return the scan with the triggers that a stage of trigger inversion reconstructs."""
    return replace(scan, triggers=read_triggers(scan.context.finish(stage, scan).path))


SIGNALS: Final[tuple[Signal, ...]] = (
    map_entropy,
    detect_triggers,
    judge_triggers,
    follow_labels,
    name_triggers,
    mark_new,
)


def scan(context: Context) -> Scan:
    """Return what all signals say of a source; finished stages are read back, not computed again.

    It writes unreadable.json, samples.parquet, flagged.csv, flagged.txt and, where wanted, quality.parquet
    into the run folder.

    Raises:
        ClipguardError: unreadable images, a guide that cannot be had, NaN scores.
    """
    data, key = read(context)
    guide = context.guide.logits(context.embeddings, data.class_names)
    result = _unknown(context, data, key, guide)
    for signal in SIGNALS:
        result = signal(result)
    result = with_comparisons(result)
    reviewed = with_reviews(result)
    samples = context.finish(SAMPLES, reviewed)
    for name in (SAMPLES_FILE, FLAGGED_TABLE, FLAGGED_NAMES):
        context.run.publish(samples.path / name, name)
    record_reviews(context.run, context.reviews)
    _assess_quality(result)
    if not context.config.power:
        return reviewed
    return replace(reviewed, canaries=read_outcomes(context.finish(POWER, result).path))


def _assess_quality(scan: Scan) -> None:
    """Publish the issues of data quality, which move nothing else; without them, no earlier ones stay."""
    run = scan.context.run
    if scan.context.quality:
        run.publish(scan.context.finish(QUALITY, scan).path / QUALITY_FILE, QUALITY_FILE)
    else:
        run.retract(QUALITY_FILE)


def read(context: Context) -> tuple[ImageSet, str]:
    """Return the readable images as the small nets see them, and the key of the stage that holds them.

    One pass over the source makes these images, those of the model to repair, and the embeddings. A second
    guide has a pass of its own.
    """
    key = context.run.key(EMBEDDINGS.described(Reading(context=context)))
    views = [(IMAGES, context.view)]
    if context.model_view is not None and context.model_view.geometry != context.view:
        views.append((MODEL_IMAGES, context.model_view.geometry))
    images = tuple(
        (stage, View(context=context, preprocessing=view, embeddings=key)) for stage, view in views
    )
    embeddings = context.finish(EMBEDDINGS, Reading(context=context, images=images))
    context.run.publish(embeddings.path / UNREADABLE, UNREADABLE)
    if context.second_guide is not None:
        of_second = replace(context, guide=context.second_guide, embeddings_from=None, baseline=None)
        context.finish(SECOND_EMBEDDINGS, Reading(context=of_second))
    return prepared_images(context, context.view, IMAGES)


def prepared_images(context: Context, view: Preprocessing, stage: Stage[View]) -> tuple[ImageSet, str]:
    """Return the readable images as a preprocessing gives them, and the key of the stage that holds them."""
    embeddings = context.finished["embeddings"]
    given = View(context=context, preprocessing=view.geometry, embeddings=embeddings.key)
    finished, source = context.finish(stage, given), context.source
    lost = recorded_source(embeddings.path)["unreadable_rows"]
    kept = source.take(np.delete(np.arange(len(source)), lost)) if lost else source
    data = ImageSet(
        images=ShardedArray.of(finished.path),
        labels=kept.labels,
        ids=kept.ids,
        class_names=kept.class_names,
        fingerprint=finished.key,
        groups=kept.groups,
    )
    return data, finished.key


def _unknown(context: Context, data: ImageSet, key: str, guide: Scores) -> Scan:
    """Return a scan before its first signal."""
    nothing = np.zeros(len(data))
    return Scan(
        context=context,
        data=data,
        images_key=key,
        guide=guide,
        likeliest=np.zeros(len(data), dtype=np.int64),
        entropy=EntropyMap(guide_nll=nothing, early_nll=nothing, guide_rank=nothing, early_rank=nothing),
        partition=partition_of(np.full(len(data), State.UNCERTAIN, np.uint8), nothing, len(data.class_names)),
        columns={},
    )
