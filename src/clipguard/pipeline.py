"""The defence in order: guide and suspicious model, split, detector, cure; each a cached stage."""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float64

from clipguard.decode import common_size, thumbnail
from clipguard.detector import Detector, refine, trigger_scores
from clipguard.entropy import SplitRule, entropy_map, split, starved_classes
from clipguard.errors import ClipguardError
from clipguard.evidence import recover_trigger
from clipguard.guide import ClipGuide
from clipguard.label_noise import LabelNoise, planted_labels, probe_log_odds, with_planted
from clipguard.models import ModelSpec, Normalized, build, save
from clipguard.probes import Probe
from clipguard.scoring import embed_source
from clipguard.seeds import Seed
from clipguard.sources import ImageSource
from clipguard.store import (
    RunFolder,
    Stage,
    read_array,
    read_image_set,
    write_array,
    write_table,
)
from clipguard.suspect import SUSPECTS, suspect_scores
from clipguard.training import VICTIM, Recipe, cross_entropy, fit
from clipguard.types import AffineTrigger, EntropyMap, History, ImageSet, Scores, Split
from clipguard.unlearn import Cure, stamped_copies, unlearn

LARGEST_THUMBNAIL = 64
"""Pixels a side at which the small nets see larger images, unless told otherwise."""

RESERVED = 0.05
"""Share of the data that a victim trained here never sees."""

Report = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All settings of a defence; what changes a stage's result is part of its cache key.

    Attributes:
        size: height and width at which the small nets and a victim trained here see the images; None takes
            the commonest size of the data, at most 64 a side. Never larger than the input of a given model.
        suspect: the suspicious model.
        rule: thresholds of the split.
        detector: the trigger detector.
        noise: when labels look planted.
        architecture: of the victim that is trained here when no model is given.
        victim: its recipe, also that of `retrain`.
        by: `unlearn` cures the model, `retrain` drops the flagged samples and trains from scratch.
        cure: how unlearning is done.
        seed: root of all randomness.
    """

    size: tuple[int, int] | None = None
    suspect: Probe = field(default_factory=lambda: SUSPECTS["shallow"])
    rule: SplitRule = field(default_factory=SplitRule)
    detector: Detector = field(default_factory=Detector)
    noise: LabelNoise = field(default_factory=LabelNoise)
    architecture: str = "preactresnet18-16"
    victim: Recipe = VICTIM
    by: Literal["unlearn", "retrain"] = "unlearn"
    cure: Cure = field(default_factory=Cure)
    seed: int = 0


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


def reserved_rows(n: int, seed: Seed) -> Bool[np.ndarray, "n"]:
    """Return the random twentieth that is set aside before any training and scoring."""
    mask = np.zeros(n, dtype=bool)
    mask[seed.numpy().choice(n, round(RESERVED * n), replace=False)] = True
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
    plan: Plan,
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
        config={"size": size},
        inputs=[source.fingerprint, clip.fingerprint],
        compute=lambda folder: embed_source(source, clip, size, folder, lambda i, n: tell("read", i, n)),
    )
    data = read_image_set(read.path)
    opinion = guide.logits(read_array(read.path / "embeddings.npy"), data.class_names)
    reserved = np.zeros(len(data), dtype=bool)
    if reserve:
        reserved = reserved_rows(len(data), Seed(plan.seed).child("reserved"))
    seen = _seen(run, read, data, reserved, (min(view[0], size[0]), min(view[1], size[1])))
    suspect = _suspect(run, seen, plan, tell)
    scores = Scores(logits=read_array(suspect.path / "logits.npy"), scale=1.0, source="suspicious model")
    entropy = entropy_map(opinion, scores, data.labels)
    first = split(entropy, data.labels, data.class_names, plan.rule)
    detect = _detect(run, seen, first, [guide.fingerprint, suspect.key], plan, tell)
    trigger = read_array(detect.path / "trigger.npy")
    found = refine(first, trigger, plan.detector)
    labels = _judge_labels(run, read, data, reserved, plan)
    odds = read_array(labels.path / "odds.npy")
    mislabelled, _ = planted_labels(entropy.guide_nll, odds, data.labels, ~found.triggered, plan.noise)
    found = with_planted(found, mislabelled)
    # The detector takes more samples out of `clean`, so that more classes may have too few.
    starved = starved_classes(found.clean, data.labels, data.class_names, plan.rule.fewest)
    stages = {"read": read, "suspect": suspect, "detect": detect, "labels": labels}
    result = Scan(
        run=run,
        data=data,
        view=seen.data.images.shape[1:3],
        guide=opinion,
        entropy=entropy,
        split=replace(found, starved=starved),
        reserved=reserved,
        mislabelled=mislabelled,
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
        small = np.lib.format.open_memmap(
            folder / "images.npy", mode="w+", dtype=np.uint8, shape=(len(data), *size, 3)
        )
        for row, image in enumerate(data.images):
            small[row] = thumbnail(image, size)
        small.flush()

    stage = run.stage("view", config={"size": size}, inputs=[read.key], compute=compute)
    images = read_array(stage.path / "images.npy", mmap=True)
    return _Seen(data=replace(data, images=images), stage=stage, reserved=reserved)


def _suspect(run: RunFolder, seen: _Seen, plan: Plan, tell: Report) -> Stage:
    """Return the stage of the suspicious model's logits."""

    def compute(folder: Path) -> None:
        nets = plan.suspect.runs * plan.suspect.folds
        counted = _Count("suspect", plan.suspect.epochs(int((~seen.reserved).sum())) * nets, tell)
        seed = Seed(plan.seed).child("suspect")
        scores = suspect_scores(seen.data, plan.suspect, seed, seen.reserved, counted)
        write_array(folder / "logits.npy", scores.logits)

    config = {"probe": asdict(plan.suspect), "seed": plan.seed, "reserve": bool(seen.reserved.any())}
    return run.stage("suspect", config=config, inputs=[seen.stage.key], compute=compute)


def _detect(run: RunFolder, seen: _Seen, first: Split, asked: list[str], plan: Plan, tell: Report) -> Stage:
    """Return the stage of the detector's scores; `asked` are the keys of guide and suspicious model."""

    def compute(folder: Path) -> None:
        probe, told = plan.detector.probe, (first.clean | first.triggered) & ~seen.reserved
        counted = _Count("detect", probe.epochs(int(told.sum())) * probe.runs * probe.folds, tell)
        seed = Seed(plan.seed).child("detect")
        trigger = trigger_scores(seen.data, first, seen.reserved, plan.detector, seed, counted)
        write_array(folder / "trigger.npy", trigger)

    config = {"probe": asdict(plan.detector.probe), "rule": asdict(plan.rule), "seed": plan.seed}
    inputs = [seen.stage.key, *asked, *seen.data.class_names]
    return run.stage("detect", config=config, inputs=inputs, compute=compute)


def _judge_labels(
    run: RunFolder, read: Stage, data: ImageSet, reserved: Bool[np.ndarray, " n"], plan: Plan
) -> Stage:
    """Return the stage of the probe's opinion on every label."""

    def compute(folder: Path) -> None:
        embeddings, seed = read_array(read.path / "embeddings.npy"), Seed(plan.seed).child("labels")
        k = len(data.class_names)
        odds = probe_log_odds(embeddings, data.labels, k, reserved, plan.noise, seed)
        write_array(folder / "odds.npy", odds)

    config = {"folds": plan.noise.folds, "seed": plan.seed, "reserve": bool(reserved.any())}
    return run.stage("labels", config=config, inputs=[read.key], compute=compute)


class _Count:
    """Turns a kernel's epoch numbers, which start anew for each net of a stage, into progress."""

    def __init__(self, stage: str, total: int, tell: Report) -> None:
        self.stage, self.total, self.done, self.tell = stage, total, 0, tell
        tell(stage, 0, total)

    def __call__(self, _: int) -> None:
        self.done += 1
        self.tell(self.stage, self.done, self.total)


def _write_samples(found: Scan, trigger: Float64[np.ndarray, " n"], plan: Plan) -> Stage:
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
        "is_reserved": found.reserved,
    }

    def compute(folder: Path) -> None:
        write_table(folder / "samples.parquet", columns)

    inputs = [stage.key for stage in found.stages.values()]
    thresholds = [plan.detector.clean, plan.detector.triggered]
    config = {"columns": sorted(columns), "thresholds": thresholds, "noise": asdict(plan.noise)}
    stage = found.run.stage("samples", config=config, inputs=inputs, compute=compute)
    found.run.publish(stage.path / "samples.parquet", "samples.parquet")
    return stage


def _model_stage(
    found: Scan,
    name: str,
    config: dict[str, Any],
    inputs: list[str],
    train: Callable[[], tuple[Normalized, ModelSpec, History]],
) -> Stage:
    """Return a stage that holds a trained model and its history."""

    def compute(folder: Path) -> None:
        model, spec, history = train()
        save(model, spec, folder / "model.safetensors")
        write_table(folder / "history.parquet", {key: np.array(v) for key, v in history.columns.items()})

    return found.run.stage(name, config=config, inputs=inputs, compute=compute)


def train_on(
    found: Scan, keep: Bool[np.ndarray, "n"], name: str, plan: Plan, report: Report | None
) -> tuple[ModelSpec, Stage]:
    """Return the spec and stage of a classifier trained from scratch on the samples of `keep`.

    Raises:
        ClipguardError: a class would lose all its samples.
    """
    data = found.data
    counts = np.bincount(data.labels[keep], minlength=len(data.class_names))
    present = np.bincount(data.labels, minlength=len(data.class_names)) > 0
    if lost := [data.class_names[i] for i in np.flatnonzero((counts == 0) & present)]:
        raise ClipguardError(f"class {lost[0]!r} has no sample left to train on: too few were found clean")
    h, w = data.images.shape[1:3]
    spec = ModelSpec(architecture=plan.architecture, num_classes=len(data.class_names), input_size=(h, w))
    seed = Seed(plan.seed).child(name)

    def train() -> tuple[Normalized, ModelSpec, History]:
        model = build(spec, seed.child("init"))
        counted = _Count(name, plan.victim.epochs, report or (lambda stage, done, total: None))
        loss = cross_entropy(data.labels)
        return (
            model,
            spec,
            fit(model, data.images, np.flatnonzero(keep), loss, plan.victim, seed.child("fit"), counted),
        )

    config = {"spec": asdict(spec), "recipe": asdict(plan.victim), "seed": plan.seed, "n": int(keep.sum())}
    inputs = [found.stages["read"].key]
    if name == "retrain":
        inputs += [found.stages["samples"].key]
    return spec, _model_stage(found, name, config, inputs, train)


def cure(
    found: Scan, victim: Normalized, spec: ModelSpec, origin: str, plan: Plan, report: Report | None = None
) -> Stage:
    """Return the stage of the victim (whose key or content hash is `origin`) after unlearning."""

    def train() -> tuple[Normalized, ModelSpec, History]:
        model = copy.deepcopy(victim)
        counted = _Count("cure", plan.cure.recipe.epochs, report or (lambda stage, done, total: None))
        seed = Seed(plan.seed).child("cure")
        data, part, guide = learnable(found)
        trigger = shared_trigger(found, plan)
        if trigger is not None and plan.cure.stamp > 0:
            copies = seed.child("copies")
            data, part, guide = stamped_copies(data, part, guide, trigger, plan.cure, copies)
        history = unlearn(model, data, part, guide, plan.cure, seed, on_epoch=counted)
        return model, spec, history

    config = {"cure": asdict(plan.cure), "spec": asdict(spec), "seed": plan.seed}
    return _model_stage(found, "cure", config, [found.stages["samples"].key, origin], train)


def shared_trigger(found: Scan, plan: Plan) -> AffineTrigger | None:
    """Return what the flagged samples share, as a trigger, or None where there is too little to tell."""

    def compute(folder: Path) -> None:
        part = replace(found.split, triggered=found.split.triggered & ~found.mislabelled)
        trigger = recover_trigger(*learnable(replace(found, split=part)), Seed(plan.seed).child("evidence"))
        if trigger is not None:
            write_array(folder / "trigger.npy", np.stack([trigger.scale, trigger.shift]))

    inputs = [found.stages["samples"].key]
    stage = found.run.stage("evidence", config={"seed": plan.seed}, inputs=inputs, compute=compute)
    found.stages["evidence"] = stage
    if not (stage.path / "trigger.npy").exists():
        return None
    scale, shift = read_array(stage.path / "trigger.npy")
    return AffineTrigger(scale=scale, shift=shift)


def learnable(found: Scan) -> tuple[ImageSet, Split, Scores]:
    """Return data, split and guide's scores without the reserved samples: nothing is learnt from those."""
    if not found.reserved.any():
        return found.data, found.split, found.guide
    rows = np.flatnonzero(~found.reserved)
    part = found.split
    kept = replace(
        part, clean=part.clean[rows], triggered=part.triggered[rows], suspicion=part.suspicion[rows]
    )
    return found.data.take(rows), kept, replace(found.guide, logits=found.guide.logits[rows])
