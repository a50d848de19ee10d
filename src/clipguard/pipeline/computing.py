"""What computes each stage: given values in, files in the stage's folder out."""

import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, Int64

from clipguard.clip.embeddings import ReadingPass, pace, read_source
from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.classifiers import ClassifierConfig
from clipguard.compute.classifiers import train_classifier as from_scratch
from clipguard.compute.inference import features as features_of
from clipguard.compute.inference import planes
from clipguard.compute.lanes import lanes_here
from clipguard.compute.threads import intra_op
from clipguard.data.provenance import recorded_source
from clipguard.detection.drawn_rows import MOST_ROWS
from clipguard.detection.early_model import early_losses
from clipguard.detection.feature_separation import separated_by_features
from clipguard.detection.label_flow import (
    LabelFlow,
    LabelView,
    label_only_poison,
    refitted_label_flow,
    too_few_to_refit,
)
from clipguard.detection.linear_probe import FOLDS, Probe
from clipguard.detection.net_configs import LATER
from clipguard.detection.probed_labels import probed_labels
from clipguard.detection.trigger_detector import trigger_scores
from clipguard.detection.trigger_inversion import FEWEST as FEWEST_TO_INVERT
from clipguard.detection.trigger_inversion import invert_triggers
from clipguard.errors import ClipguardError
from clipguard.mitigation.unlearning import UnlearningConfig
from clipguard.models.features import head_of
from clipguard.models.spec import ModelSpec, Normalized, check_sound, save
from clipguard.pipeline.baseline import baseline_stage
from clipguard.pipeline.samples import status_columns
from clipguard.pipeline.scan import Context, EpochProgress, Scan, write_notes
from clipguard.runs import Stage, resume_folder, write_array, write_table
from clipguard.seeds import Stream
from clipguard.triggers.affine import write_triggers
from clipguard.types import History, ImageSet, Preprocessing, State, StepProgress

WORTH_A_REMARK: Final = 1000
"""Images from which on it is said how long the guide will take."""

_MEGA: Final = 2**20 if sys.platform == "darwin" else 2**10
"""Units of the system's count of memory in a MB."""

FEATURES_FILE: Final = "feature_separation.parquet"
"""What the victim's features say of the labels of quarantined classes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Images of the source as a preprocessing gives them; `embeddings` is the key of that stage."""

    context: Context
    preprocessing: Preprocessing
    embeddings: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The one pass over a source, and the images that are made of it on the way: stage and view of each."""

    context: Context
    images: tuple[tuple[Stage[View], View], ...] = ()


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
        bears_mirroring: whether the victim takes mirrored images for what they were.
    """

    scan: Scan
    victim: Normalized
    spec: ModelSpec
    origin: str
    unseen: Int64[np.ndarray, "m"]
    bears_mirroring: bool = True

    @property
    def unlearning(self) -> UnlearningConfig:
        """The settings of the repair, which mirrors no images that the victim would take for others."""
        config = self.scan.context.config.unlearning
        flip = config.recipe.flip and self.bears_mirroring
        return replace(config, recipe=replace(config.recipe, flip=flip))


def read(given: Reading, folder: Path, progress: StepProgress) -> None:
    """Write embeddings, and what was read; in the folders of the stages of images, these images."""
    context = given.context
    reading = ReadingPass(
        source=context.source,
        guide=context.guide,
        folder=folder,
        images=tuple(
            (context.run.working(stage.described(view)), view.preprocessing) for stage, view in given.images
        ),
        known=context.embeddings_from,
        baseline=None if context.baseline is None else baseline_stage(context.baseline).path,
        lanes=lanes_here(),
    )
    known = context.embeddings_from or context.baseline
    if len(context.source) >= WORTH_A_REMARK and not known:
        context.progress(_expectation(context.guide, reading.lanes, len(context.source)), 0, 0)
    read_source(reading, context.engine, progress)


def read_again(given: Reading, folder: Path, progress: StepProgress) -> None:
    """Write the embeddings of a second guide, in a pass of its own: it may come to a finished run.

    Raises:
        ClipguardError: not the same images could be read as in the first pass.
    """
    read(given, folder, progress)
    first, second = (recorded_source(at) for at in (given.context.finished["embeddings"].path, folder))
    if any(first[part] != second[part] for part in ("fingerprint", "unreadable_rows")):
        raise ClipguardError(
            f"{given.context.source.location} changed since the first guide read it: scan in a new run folder"
        )


def _expectation(guide: ClipGuide, lanes: int, n: int) -> str:
    """Return in words how long the guide's pass will take, before it starts."""
    # Not on every platform; reading does not depend on it.
    import resource

    rate, memory = pace(guide, lanes), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MEGA
    seconds = n / rate
    time = f"{seconds / 60:,.0f} min" if seconds > 100 else f"{seconds:.0f} s"
    return (
        f"guide {guide.name} reads about {rate:,.0f} images a second here, in {memory:,.0f} MB: about {time} "
        f"for {n:,} images, {50_000 / rate / 60:,.0f} min for 50,000"
    )


def prepare_images(given: View, folder: Path, progress: StepProgress) -> None:
    """Write the readable images as a preprocessing gives them, unless the first pass has done so."""
    context = given.context
    reading = ReadingPass(
        source=context.source,
        guide=None,
        folder=context.finished["embeddings"].path,
        images=((folder, given.preprocessing),),
    )
    read_source(reading, context.engine, progress)


def train_early_model(scan: Scan, folder: Path, progress: StepProgress) -> None:
    """Write the early-training model's loss of every given label, early and late."""
    config, context, n = scan.context.config.early_model, scan.context, len(scan.data)
    epochs = LATER * config.total_epochs(min(n, MOST_ROWS)) * config.runs * config.folds
    counter = EpochProgress(epochs, progress)
    losses = early_losses(scan.data, scan.guide, config, context.seed(Stream.EARLY_MODEL), counter)
    write_array(folder / "early_nll.npy", losses.early)
    write_array(folder / "late_nll.npy", losses.late)
    if n > MOST_ROWS:
        write_notes(folder, [f"the early-training model has learned from {MOST_ROWS:,} of {n:,} samples"])


def detect_triggers(scan: Scan, folder: Path, progress: StepProgress) -> None:
    """Write each sample's probability of carrying a trigger."""
    config, context = scan.context.config.trigger_detector, scan.context
    sides = scan.partition.has(State.CLEAN, State.TRIGGER)
    counter = EpochProgress(config.total_epochs(min(int(sides.sum()), MOST_ROWS)), progress)
    embeddings = context.embeddings
    scores = trigger_scores(scan.data, scan.partition, embeddings, config, context.seed("detect"), counter)
    counter.finish()
    write_array(folder / "probability.npy", scores.probability)
    write_array(folder / "first_round.npy", scores.first_round)
    write_notes(folder, scores.notes)


def follow_labels(scan: Scan, folder: Path, progress: StepProgress) -> None:
    """Write what the linear probe says of every label, and both tests of labels of every class."""
    embeddings, seed = scan.context.embeddings, scan.context.seed("labels")
    probed = probed_labels(embeddings, scan.data.labels, scan.num_classes, seed, scan.data.groups)
    for name, values in probed.probe._asdict().items():
        write_array(folder / f"{name}.npy", values)
    write_table(folder / "exchange.parquet", asdict(probed.exchange))
    write_table(folder / "one_way.parquet", asdict(probed.one_way))
    if len(scan.data) * (FOLDS - 1) // FOLDS > MOST_ROWS:
        write_notes(
            folder, [f"each linear probe has learned from {MOST_ROWS:,} of {len(scan.data):,} samples"]
        )


def label_view(scan: Scan) -> LabelView:
    """Return what label flow is measured on: what no trigger explains."""
    return LabelView(
        labels=scan.data.labels,
        num_classes=scan.num_classes,
        guide_nll=scan.entropy.guide_nll,
        unexplained=~scan.partition.has(State.TRIGGER),
        groups=scan.data.groups,
    )


def first_label_flow(scan: Scan) -> LabelFlow:
    """Return what the stage `label_flow` flags and excludes."""
    probe = Probe(*(scan.context.array("label_flow", f"{name}.npy") for name in Probe._fields))
    return label_only_poison(label_view(scan), probe, scan.context.config.label_flow, _label_targets(scan))


def _label_targets(scan: Scan) -> Bool[np.ndarray, "k"] | None:
    """Return the classes that tests of labels reject and that no trigger explains, or only a natural one."""
    if scan.tests is None:
        return None
    # In the latter, what an easy class looks like was taken for a trigger.
    natural = [one.label for one, cause in zip(scan.beliefs, scan.causes, strict=True) if cause == "natural"]
    explained = scan.tests.triggered & ~np.isin(np.arange(scan.num_classes), natural)
    return np.asarray(scan.tests.wrong_labels & ~explained)


def refit_label_flow(scan: Scan, folder: Path, progress: StepProgress) -> None:
    """Write what a refitted probe flags and excludes."""
    first, view, context = first_label_flow(scan), label_view(scan), scan.context
    embeddings = context.embeddings
    flow = refitted_label_flow(embeddings, view, first, context.config.label_flow, context.seed("labels"))
    for name, values in flow._asdict().items():
        write_array(folder / f"{name}.npy", values)
    if too_few_to_refit(view, first):
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


def train_classifier(given: Training, folder: Path, progress: StepProgress) -> None:
    """Write a classifier trained from scratch."""
    counter = EpochProgress(given.classifier.recipe.epochs, progress)
    checkpoint = resume_folder(folder) / "checkpoint.safetensors"
    data, rows = given.scan.data, np.flatnonzero(given.rows)
    with intra_op(given.scan.context.run.manifest["threads"]):
        model, history = from_scratch(given.classifier, data, rows, on_epoch=counter, checkpoint=checkpoint)
    keep(folder, model, given.classifier.spec, data, history)


def separate_features(given: Repair, folder: Path, progress: StepProgress) -> None:
    """Write the partition as the victim's features judge it."""
    scan, context = given.scan, given.scan.context
    features = partial(features_of, given.victim, scan.data.images)
    seed, config = context.seed(Stream.FEATURE_SEPARATION), context.config.feature_separation
    partition = separated_by_features(
        scan.partition, scan.data.labels, features, config, seed, scan.data.groups
    )
    if head_of(given.victim, planes(scan.data.images[:1])) is None:
        write_notes(folder, ["the model has no linear head: its logits stand in for penultimate features"])
    write_array(folder / "state.npy", partition.state)
    write_array(folder / "clean_share.npy", partition.clean_share)
    rows = np.flatnonzero(np.isin(scan.data.labels, partition.quarantined) & ~partition.has(State.HELD_OUT))
    columns = {
        "id": [scan.data.ids[row] for row in rows],
        "label": scan.data.labels[rows],
        "given_label": [scan.data.class_names[label] for label in scan.data.labels[rows]],
        **status_columns(partition.take(rows)),
    }
    write_table(folder / FEATURES_FILE, columns)


def keep(folder: Path, model: Normalized, spec: ModelSpec, data: ImageSet, history: History) -> None:
    """Write a model and how it was trained."""
    check_sound(model, spec)
    save(model, spec, folder / "model.safetensors", data.class_names)
    write_table(folder / "history.parquet", {key: np.array(v) for key, v in history.columns.items()})
