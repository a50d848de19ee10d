"""What computes each stage: given values in, files in the stage's folder out."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Int64

from clipguard.clip.embeddings import embed_source
from clipguard.compute.classifiers import ClassifierConfig
from clipguard.compute.classifiers import train_classifier as from_scratch
from clipguard.compute.inference import features as features_of
from clipguard.compute.inference import planes
from clipguard.data.decode import Decoder, Unreadable, decode_rows
from clipguard.data.decode.geometry import prepared
from clipguard.data.decode.reading import REPORT_EVERY
from clipguard.data.provenance import write_inputs
from clipguard.detection.early_model import early_model_scores
from clipguard.detection.feature_separation import separated_by_features
from clipguard.detection.label_flow import (
    LabelFlow,
    LabelView,
    class_log_probs,
    label_only_poison,
    refitted_label_flow,
    too_few_to_refit,
)
from clipguard.detection.trigger_detector import trigger_scores
from clipguard.detection.trigger_inversion import FEWEST as FEWEST_TO_INVERT
from clipguard.detection.trigger_inversion import invert_triggers
from clipguard.errors import ClipguardError
from clipguard.models.features import head_of
from clipguard.models.spec import ModelSpec, Normalized, check_sound, save
from clipguard.pipeline.scan import Context, EpochProgress, Scan, write_notes
from clipguard.runs import resume_folder, write_array, write_pieces, write_table
from clipguard.seeds import Stream
from clipguard.triggers.affine import write_triggers
from clipguard.types import (
    STATES,
    History,
    Images,
    ImageSet,
    Partition,
    Preprocessing,
    State,
    StepProgress,
)

FEATURES_FILE: Final = "feature_separation.parquet"
"""What the victim's features say of the labels of quarantined classes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resized:
    """Images of the source prepared otherwise than in the first pass."""

    context: Context
    data: ImageSet
    preprocessing: Preprocessing


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A classifier to train from scratch on the samples of `rows`."""

    scan: Scan
    rows: Bool[np.ndarray, "n"]
    classifier: ClassifierConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """A victim to repair.

    Attributes:
        scan: with the images at the size of the victim's input, and the triggers at that size.
        victim: the model.
        spec: how it is built.
        origin: key of its training, or hash of its weights.
        unseen: trusted samples that the victim has not learned, if it was trained here.
    """

    scan: Scan
    victim: Normalized
    spec: ModelSpec
    origin: str
    unseen: Int64[np.ndarray, "m"]


def read(context: Context, folder: Path, progress: StepProgress) -> None:
    """Write thumbnails and embeddings of the readable images, and the hashes of what was read."""
    embed_source(context.source, context.guide.clip, context.thumbnail_size, folder, progress)
    write_inputs(context.source, folder)


def resize(given: Resized, folder: Path, progress: StepProgress) -> None:
    """Write the readable images prepared otherwise."""
    source, readable = given.context.source, set(given.data.ids)
    rows = np.array([row for row, name in enumerate(source.ids) if name in readable], dtype=np.int64)

    def images() -> Iterator[Images]:
        decoded = decode_rows(source, rows, Decoder(source.limits))
        for done, (_, image) in enumerate(decoded, 1):
            if isinstance(image, Unreadable):
                raise ClipguardError(f"{source.location}: {image.id!r} changed while it was read: run again")
            yield prepared(image, given.preprocessing)[None]
            if done % REPORT_EVERY == 0 or done == len(rows):
                progress(done, len(rows))

    write_pieces(
        folder / "images.npy", (len(rows), *given.preprocessing.size, 3), np.dtype(np.uint8), images()
    )


def train_early_model(scan: Scan, folder: Path, progress: StepProgress) -> None:
    """Write the logits of the early-training model."""
    config, context = scan.context.config.early_model, scan.context
    epochs = config.total_epochs(len(scan.data)) * config.runs * config.folds
    counter = EpochProgress(epochs, progress)
    scores = early_model_scores(scan.data, scan.guide, config, context.seed(Stream.EARLY_MODEL), counter)
    write_array(folder / "logits.npy", scores.logits)


def detect_triggers(scan: Scan, folder: Path, progress: StepProgress) -> None:
    """Write each sample's probability of carrying a trigger."""
    config, context = scan.context.config.trigger_detector, scan.context
    sides = scan.partition.has(State.CLEAN, State.TRIGGER)
    counter = EpochProgress(config.total_epochs(int(sides.sum())), progress)
    embeddings = context.array("read", "embeddings.npy")
    scores = trigger_scores(scan.data, scan.partition, embeddings, config, context.seed("detect"), counter)
    counter.finish()
    write_array(folder / "probability.npy", scores.probability)
    write_notes(folder, scores.notes)


def follow_labels(scan: Scan, folder: Path, progress: StepProgress) -> None:
    """Write the log-probabilities of the linear probe."""
    everything = np.ones(len(scan.data), dtype=bool)
    embeddings, seed = scan.context.array("read", "embeddings.npy"), scan.context.seed("labels")
    log_probs = class_log_probs(embeddings, scan.data.labels, scan.num_classes, ~everything, seed)
    write_array(folder / "log_probs.npy", log_probs)


def label_view(scan: Scan) -> LabelView:
    """Return what label flow is measured on: what no trigger explains."""
    return LabelView(
        labels=scan.data.labels,
        guide_nll=scan.entropy.guide_nll,
        unexplained=~scan.partition.has(State.TRIGGER),
    )


def first_label_flow(scan: Scan) -> LabelFlow:
    """Return what the stage `label_flow` flags and excludes."""
    log_probs = scan.context.array("label_flow", "log_probs.npy")
    return label_only_poison(label_view(scan), log_probs, scan.context.config.label_flow)


def refit_label_flow(scan: Scan, folder: Path, progress: StepProgress) -> None:
    """Write what a refitted probe flags and excludes."""
    first, context = first_label_flow(scan), scan.context
    embeddings = context.array("read", "embeddings.npy")
    flow = refitted_label_flow(
        embeddings, label_view(scan), first, context.config.label_flow, context.seed("labels")
    )
    for name, values in flow._asdict().items():
        write_array(folder / f"{name}.npy", values)
    if too_few_to_refit(scan.data.labels, first):
        write_notes(
            folder, ["the linear probe was not fitted again: a suspected target class keeps too few samples"]
        )


def reconstruct_triggers(scan: Scan, folder: Path, progress: StepProgress) -> None:
    """Write the triggers that the flagged samples share."""
    seed = scan.context.seed(Stream.TRIGGER_INVERSION)
    triggers = invert_triggers(scan.data, scan.partition, scan.guide, seed)
    write_triggers(triggers, folder)
    flagged = int(scan.partition.has(State.TRIGGER).sum())
    if flagged and not triggers:
        clean = int(scan.partition.clean.sum())
        few = f"no trigger was reconstructed from {flagged} flagged and {clean} clean samples"
        write_notes(folder, [f"{few}: {FEWEST_TO_INVERT} of each are needed"])


def status_columns(partition: Partition) -> dict[str, Any]:
    """Return the columns that say what becomes of each sample."""
    names = [STATES[State(state)] for state in partition.state]
    return {"status": [name.status for name in names], "reason": [name.reason for name in names]}


def write_samples(scan: Scan, folder: Path, progress: StepProgress) -> None:
    """Write samples.parquet: one row a sample, the most suspicious ranked 1."""
    data, partition = scan.data, scan.partition
    names = np.array(data.class_names, dtype=object)
    # Ties go by name and not by row, so that a shuffled data set gives the same list.
    order = np.lexsort((np.array(data.ids, dtype=object).astype(str), -partition.suspicion))
    rank = np.empty(len(data), dtype=np.int64)
    rank[order] = np.arange(1, len(data) + 1)
    columns = {
        "id": data.ids,
        "label": data.labels,
        "label_name": names[data.labels],
        "guide_label_name": names[scan.guide.logits.argmax(1)],
        **scan.columns,
        "suspicion_score": partition.suspicion,
        "rank": rank,
        **status_columns(partition),
        "trigger": partition.trigger + 1,
    }
    write_table(folder / "samples.parquet", columns)


def train_classifier(given: Training, folder: Path, progress: StepProgress) -> None:
    """Write a classifier trained from scratch."""
    counter = EpochProgress(given.classifier.recipe.epochs, progress)
    checkpoint = resume_folder(folder) / "checkpoint.safetensors"
    data, rows = given.scan.data, np.flatnonzero(given.rows)
    model, history = from_scratch(given.classifier, data, rows, on_epoch=counter, checkpoint=checkpoint)
    keep(folder, model, given.classifier.spec, data, history)


def separate_features(given: Repair, folder: Path, progress: StepProgress) -> None:
    """Write the partition as the victim's features judge it."""
    scan, context = given.scan, given.scan.context
    features = partial(features_of, given.victim, scan.data.images)
    seed, config = context.seed(Stream.FEATURE_SEPARATION), context.config.feature_separation
    partition = separated_by_features(scan.partition, scan.data.labels, features, config, seed)
    if head_of(given.victim, planes(scan.data.images[:1])) is None:
        write_notes(folder, ["the model has no linear head: its logits stand in for penultimate features"])
    write_array(folder / "state.npy", partition.state)
    write_array(folder / "clean_share.npy", partition.clean_share)
    rows = np.flatnonzero(np.isin(scan.data.labels, partition.quarantined) & ~partition.has(State.HELD_OUT))
    columns = {
        "id": [scan.data.ids[row] for row in rows],
        "label": scan.data.labels[rows],
        "label_name": [scan.data.class_names[label] for label in scan.data.labels[rows]],
        **status_columns(partition.take(rows)),
    }
    write_table(folder / FEATURES_FILE, columns)


def keep(folder: Path, model: Normalized, spec: ModelSpec, data: ImageSet, history: History) -> None:
    """Write a model and how it was trained."""
    check_sound(model, spec)
    save(model, spec, folder / "model.safetensors", data.class_names)
    write_table(folder / "history.parquet", {key: np.array(v) for key, v in history.columns.items()})
