"""What a data set looks like to guide, small nets and detector: from the source to the split."""

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64

from clipguard.clip.embeddings import embed_source
from clipguard.clip.model import Clip
from clipguard.clip.zero_shot import ClipGuide
from clipguard.data import ImageSource
from clipguard.data.decode import common_size, thumbnail
from clipguard.data.provenance import write_inputs
from clipguard.detection.early_model import ResidualConfig, early_model_scores
from clipguard.detection.entropy_map import classes_with_few_clean, entropy_map, split
from clipguard.detection.label_flow import (
    LabelFlow,
    class_log_probs,
    label_only_poison,
    refitted_label_flow,
    with_label_flags,
)
from clipguard.detection.trigger_detector import refine, trigger_scores
from clipguard.pipeline.config import Count, DefenseConfig, Report
from clipguard.runs import (
    RunFolder,
    Stage,
    read_array,
    read_image_set,
    write_array,
    write_pieces,
    write_table,
)
from clipguard.seeds import Seed
from clipguard.types import EntropyMap, ImageSet, Scores, Split

LARGEST_THUMBNAIL = 64
"""Pixels a side at which the small nets see larger images, unless told otherwise."""

RESERVED = 0.05
"""RowFilter of the data that a victim trained here never sees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What a scan found, with the stages that later ones build on.

    `data` has the images at the size of the model to cure; the small nets saw them at `view`. `mislabelled`
    are those `triggered` samples that are flagged for their label alone, and not for a trigger.
    """

    run: RunFolder
    data: ImageSet
    view: tuple[int, int]
    guide: Scores
    entropy: EntropyMap
    split: Split
    reserved: Bool[np.ndarray, "n"]
    mislabelled: Bool[np.ndarray, "n"]
    stages: dict[str, Stage]


def thumbnail_size(source: ImageSource) -> tuple[int, int]:
    """Return the commonest image size, shrunk to at most `LARGEST_THUMBNAIL` a side."""
    h, w = common_size(source).common
    shrink = min(1.0, LARGEST_THUMBNAIL / max(h, w))
    return max(8, round(h * shrink)), max(8, round(w * shrink))


def held_out_rows(labels: Int64[np.ndarray, "n"], seed: Seed) -> Bool[np.ndarray, "n"]:
    """Return the random twentieth that is set aside before any training and scoring.

    A class that would lose more than half of its samples is so small that it loses none.
    """
    n = len(labels)
    mask = np.zeros(n, dtype=bool)
    mask[seed.numpy().choice(n, round(RESERVED * n), replace=False)] = True
    counts = np.bincount(labels)
    most = 2 * np.bincount(labels[mask], minlength=len(counts)) > counts
    mask &= ~most[labels]
    return mask


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What the small nets look at: images, the stage that holds them, and the samples they must not learn."""

    data: ImageSet
    stage: Stage
    reserved: Bool[np.ndarray, "n"]


def scan(  # noqa: PLR0913  # what is scanned, by whom, where to, how, for whom: no two belong together
    source: ImageSource,
    guide: ClipGuide,
    run: RunFolder,
    plan: DefenseConfig,
    reserve: bool = False,
    report: Report | None = None,
    *,
    model_size: tuple[int, int] | None = None,
) -> Scan:
    """Return the entropy map and split of a source; finished stages are read back, not computed again.

    Args:
        source: the untrusted data set.
        guide: who reads the labels.
        run: where the stages are kept.
        plan: all settings.
        reserve: set a random twentieth aside, since a victim is to be trained here.
        report: called with (stage, done, total).
        model_size: input height and width of a given model; the small nets may look at less.

    Raises:
        ClipguardError: unreadable images, a guide that cannot be had, NaN scores.
    """
    tell = report or (lambda stage, done, total: None)
    view = plan.size or thumbnail_size(source)
    size, clip = model_size or view, guide.clip
    read = run.stage(
        "read",
        config={"size": size, "limits": asdict(source.limits)},
        # Other heads, activations or crops beside the same weights see other things.
        inputs=[source.fingerprint, clip.fingerprint, clip.preprocessing_sha256],
        compute=lambda folder: _read(source, clip, size, folder, tell),
    )
    run.publish(read.path / "unreadable.json", "unreadable.json")
    data = read_image_set(read.path)
    opinion = guide.logits(read_array(read.path / "embeddings.npy"), data.class_names)
    reserved = np.zeros(len(data), dtype=bool)
    if reserve:
        reserved = held_out_rows(data.labels, Seed(plan.seed).child("reserved"))
    seen = _seen(run, read, data, reserved, (min(view[0], size[0]), min(view[1], size[1])))
    suspect = _suspect(run, seen, opinion, guide.fingerprint, plan, tell)
    scores = Scores(logits=read_array(suspect.path / "logits.npy"), scale=1.0, source="suspicious model")
    entropy = entropy_map(opinion, scores, data.labels)
    first = split(entropy, data.labels, data.class_names, plan.rule)
    detect = _detect(run, seen, (first, read), [guide.fingerprint, suspect.key], plan, tell)
    trigger = read_array(detect.path / "trigger.npy")
    found = refine(first, trigger, plan.detector)
    stages = {"read": read, "suspect": suspect, "detect": detect}
    judged = _judge_labels(run, seen, stages, (entropy, found), plan)
    found = with_label_flags(found, data.labels, judged, plan.noise)
    # The detector takes more samples out of `clean`, so that more classes may have too few.
    starved = classes_with_few_clean(found.clean, data.labels, data.class_names, plan.rule.fewest)
    result = Scan(
        run=run,
        data=data,
        view=seen.data.images.shape[1:3],
        guide=opinion,
        entropy=entropy,
        split=replace(found, starved=starved),
        reserved=reserved,
        mislabelled=judged.planted,
        stages=stages,
    )
    stages["samples"] = _write_samples(result, trigger, plan)
    return result


def _seen(
    run: RunFolder, read: Stage, data: ImageSet, reserved: Bool[np.ndarray, " n"], size: tuple[int, int]
) -> _Seen:
    """Return the images at the size at which the small nets look: those of `read`, or smaller ones."""
    if data.images.shape[1:3] == size:
        return _Seen(data=data, stage=read, reserved=reserved)

    def compute(folder: Path) -> None:
        small = (thumbnail(image, size) for image in data.images)
        write_pieces(folder / "images.npy", (len(data), *size, 3), np.dtype(np.uint8), small)

    stage = run.stage("view", config={"size": size}, inputs=[read.key], compute=compute)
    images = read_array(stage.path / "images.npy", mmap=True)
    return _Seen(data=replace(data, images=images), stage=stage, reserved=reserved)


def _suspect(
    run: RunFolder, seen: _Seen, opinion: Scores, asked: str, plan: DefenseConfig, tell: Report
) -> Stage:
    """Return the stage of the suspicious model's logits; `asked` is the fingerprint of the guide."""

    def compute(folder: Path) -> None:
        nets = plan.suspect.runs * plan.suspect.folds
        counted = Count("suspect", plan.suspect.epochs(int((~seen.reserved).sum())) * nets, tell)
        seed = Seed(plan.seed).child("suspect")
        scores = early_model_scores(seen.data, opinion, plan.suspect, seed, seen.reserved, counted)
        write_array(folder / "logits.npy", scores.logits)

    config = {"probe": asdict(plan.suspect), "seed": plan.seed, "reserve": int(seen.reserved.sum())}
    # Who does not ask the guide need not be asked again beside another one.
    beside = [asked, *seen.data.class_names] if isinstance(plan.suspect, ResidualConfig) else []
    return run.stage("suspect", config=config, inputs=[seen.stage.key, *beside], compute=compute)


def _detect(
    run: RunFolder,
    seen: _Seen,
    told: tuple[Split, Stage],
    asked: list[str],
    plan: DefenseConfig,
    tell: Report,
) -> Stage:
    """Return the stage of the detector's scores.

    `told` are the first split and the stage that holds the embeddings, `asked` the keys of those that the
    split stands on.
    """
    first, read = told

    def compute(folder: Path) -> None:
        learnt = (first.clean | first.triggered) & ~seen.reserved
        counted = Count("detect", plan.detector.epochs(int(learnt.sum())), tell)
        seed, embeddings = Seed(plan.seed).child("detect"), read_array(read.path / "embeddings.npy")
        trigger = trigger_scores(seen.data, first, embeddings, seen.reserved, plan.detector, seed, counted)
        counted.finish()
        write_array(folder / "trigger.npy", trigger)

    config = {"detector": asdict(plan.detector), "rule": asdict(plan.rule), "seed": plan.seed}
    inputs = [seen.stage.key, *asked, *seen.data.class_names]
    return run.stage("detect", config=config, inputs=inputs, compute=compute)


def _judge_labels(
    run: RunFolder,
    seen: _Seen,
    stages: dict[str, Stage],
    so_far: tuple[EntropyMap, Split],
    plan: DefenseConfig,
) -> LabelFlow:
    """Return which labels look planted; the stages of the probe's opinions join `stages`."""
    labels, k, reserved, noise = seen.data.labels, len(seen.data.class_names), seen.reserved, plan.noise
    (entropy, found), seed = so_far, Seed(plan.seed).child("labels")

    def embeddings() -> np.ndarray:
        return read_array(stages["read"].path / "embeddings.npy")

    def compute(folder: Path) -> None:
        write_array(folder / "odds.npy", class_log_probs(embeddings(), labels, k, reserved, noise, seed))

    config = {"folds": noise.folds, "seed": plan.seed, "reserve": int(reserved.sum())}
    stages["labels"] = run.stage("labels", config=config, inputs=[stages["read"].key], compute=compute)
    odds, unexplained = read_array(stages["labels"].path / "odds.npy"), ~found.triggered
    first = label_only_poison(entropy.guide_nll, odds, labels, unexplained, noise)
    if not first.planted.any():
        return first

    def look_again(folder: Path) -> None:
        said = refitted_label_flow(
            embeddings(), entropy.guide_nll, labels, k, unexplained, reserved, first, noise, seed
        )
        for name, values in said._asdict().items():
            write_array(folder / f"{name}.npy", values)

    flagged = hashlib.sha256(first.planted.tobytes() + first.doubted.tobytes()).hexdigest()
    inputs = [stages["labels"].key, stages["detect"].key, flagged]
    stages["reprobe"] = run.stage("reprobe", config=asdict(noise), inputs=inputs, compute=look_again)
    return LabelFlow(*(read_array(stages["reprobe"].path / f"{name}.npy") for name in LabelFlow._fields))


def _read(source: ImageSource, clip: Clip, size: tuple[int, int], folder: Path, tell: Report) -> None:
    """Fill the folder of the stage `read`: thumbnails, embeddings, and the list of what they came from."""
    embed_source(source, clip, size, folder, lambda done, total: tell("read", done, total))
    write_inputs(source, folder)


def _write_samples(found: Scan, trigger: Float64[np.ndarray, " n"], plan: DefenseConfig) -> Stage:
    """Publish samples.parquet and return its stage: one row a sample, the most suspicious ranked 1."""
    data, part = found.data, found.split
    names = np.array(data.class_names, dtype=object)
    # Ties go by name and not by row, so that a shuffled data set gives the same list.
    order = np.lexsort((np.array(data.ids, dtype=object).astype(str), -part.suspicion))
    rank = np.empty(len(data), dtype=np.int64)
    rank[order] = np.arange(1, len(data) + 1)
    columns = {
        "id": data.ids,
        "label": data.labels,
        "label_name": names[data.labels],
        "guide_label_name": names[found.guide.logits.argmax(1)],
        **asdict(found.entropy),
        "trigger_score": trigger,
        "suspicion_score": part.suspicion,
        "rank": rank,
        "is_clean": part.clean,
        "is_triggered": part.triggered,
        "is_mislabelled": found.mislabelled,
        "is_doubted": ~part.admissible & ~part.triggered,
        "is_reserved": found.reserved,
    }

    def compute(folder: Path) -> None:
        write_table(folder / "samples.parquet", columns)

    # LabelFlow anew in every run, and what is judged is part of the key: another release may judge otherwise.
    judged = hashlib.sha256()
    for column in (part.clean, part.triggered, part.admissible, part.suspicion, found.mislabelled):
        judged.update(column.tobytes())
    if part.honest is not None:
        judged.update(part.honest.tobytes())
    inputs = [*(stage.key for stage in found.stages.values()), judged.hexdigest()]
    thresholds = [plan.detector.clean, plan.detector.triggered]
    config = {"columns": sorted(columns), "thresholds": thresholds, "noise": asdict(plan.noise)}
    stage = found.run.stage("samples", config=config, inputs=inputs, compute=compute)
    found.run.publish(stage.path / "samples.parquet", "samples.parquet")
    return stage
