"""What is made of a scan: a victim, its cure, a model without the flagged samples; each a cached stage."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool

from clipguard.compute.inference import features
from clipguard.compute.training import cross_entropy, fit
from clipguard.detection.feature_separation import separated_by_features
from clipguard.detection.trigger_inversion import TRIGGER_PER_LABEL_SHARE, invert_triggers
from clipguard.errors import ClipguardError
from clipguard.mitigation.unlearning import trigger_augmented, unlearn
from clipguard.models.spec import ModelSpec, Normalized, build, check_sound, save
from clipguard.pipeline.config import Count, DefenseConfig, Report
from clipguard.pipeline.scanning import Scan
from clipguard.runs import (
    Stage,
    read_array,
    read_triggers,
    resume_folder,
    write_array,
    write_pieces,
    write_table,
    write_triggers,
)
from clipguard.seeds import Seed
from clipguard.types import AffineTrigger, History, Images, ImageSet, Scores, Split

FEATURES_FILE: Final = "planted.parquet"
"""What a victim's activations say of the labels of closed classes."""


def _model_stage(
    found: Scan,
    name: str,
    config: dict[str, Any],
    inputs: list[str],
    train: Callable[[Path], tuple[Normalized, ModelSpec, History]],
) -> Stage:
    """Return a stage that holds a trained model and its history; `train` may note there how far it is."""

    def compute(folder: Path) -> None:
        model, spec, history = train(resume_folder(folder) / "checkpoint.safetensors")
        check_sound(model, spec)
        save(model, spec, folder / "model.safetensors")
        write_table(folder / "history.parquet", {key: np.array(v) for key, v in history.columns.items()})

    return found.run.stage(name, config=config, inputs=inputs, compute=compute)


def spec_to_train(
    plan: DefenseConfig, num_classes: int, size: tuple[int, int], like: ModelSpec | None
) -> ModelSpec:
    """Return how a classifier that is trained here is built; it normalises as the given model `like` does."""
    spec = ModelSpec(architecture=plan.architecture, num_classes=num_classes, input_size=size)
    return spec if like is None else replace(spec, mean=like.mean, std=like.std)


def train_on(
    found: Scan,
    keep: Bool[np.ndarray, "n"],
    name: str,
    plan: DefenseConfig,
    report: Report | None,
    like: ModelSpec | None = None,
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
    spec = spec_to_train(plan, len(data.class_names), data.images.shape[1:3], like)
    seed = Seed(plan.seed).child(name)

    def train(checkpoint: Path) -> tuple[Normalized, ModelSpec, History]:
        model = build(spec, seed.child("init"))
        counted = Count(name, plan.victim.epochs, report or (lambda stage, done, total: None))
        loss, rows = cross_entropy(data.labels), np.flatnonzero(keep)
        history = fit(model, data.images, rows, loss, plan.victim, seed.child("fit"), counted, checkpoint)
        return model, spec, history

    config = {"spec": asdict(spec), "recipe": asdict(plan.victim), "seed": plan.seed, "n": int(keep.sum())}
    inputs = [found.stages["read"].key]
    if name == "retrain":
        inputs += [found.stages["samples"].key]
    return spec, _model_stage(found, name, config, inputs, train)


def cure(
    found: Scan,
    victim: Normalized,
    spec: ModelSpec,
    origin: str,
    plan: DefenseConfig,
    report: Report | None = None,
) -> Stage:
    """Return the stage of the victim (whose key or content hash is `origin`) after unlearning."""

    def train(checkpoint: Path) -> tuple[Normalized, ModelSpec, History]:
        def on_disk(count: int, pieces: Iterator[Images]) -> Images:
            file = checkpoint.with_name("images.npy")
            write_pieces(file, (count, *data.images.shape[1:]), np.dtype(np.uint8), pieces)
            return read_array(file, mmap=True)

        model = copy.deepcopy(victim)
        counted = Count("cure", plan.cure.recipe.epochs, report or (lambda stage, done, total: None))
        seed = Seed(plan.seed).child("cure")
        data, part, guide = learnable(found)
        part = part if judged is None else _read_split(part, judged)
        if triggers and plan.cure.stamp > 0:
            copies = seed.child("copies")
            data, part, guide = trigger_augmented(data, part, guide, triggers, plan.cure, copies, on_disk)
        history = unlearn(model, data, part, guide, plan.cure, seed, on_epoch=counted, checkpoint=checkpoint)
        return model, spec, history

    triggers = inverted_triggers(found, plan)
    judged = _judged_by_victim(found, victim, spec, origin, plan)
    config = {"cure": asdict(plan.cure), "spec": asdict(spec), "seed": plan.seed}
    inputs = [found.stages["samples"].key, found.stages["evidence"].key, origin]
    inputs += [] if judged is None else [judged.key]
    return _model_stage(found, "cure", config, inputs, train)


def _judged_by_victim(
    found: Scan, victim: Normalized, spec: ModelSpec, origin: str, plan: DefenseConfig
) -> Stage | None:
    """Return the stage of what the victim's activations say about closed classes; None without any.

    It publishes planted.parquet: every learnable sample of those classes, and what became of it.
    """
    if found.split.shown is None or not plan.activations.looks:
        return None

    def compute(folder: Path) -> None:
        data, part, _ = learnable(found)
        seed = Seed(plan.seed).child("activations")
        seen = partial(features, victim, data.images)
        judged = separated_by_features(part, data.labels, seen, plan.activations, seed)
        for name in _JUDGED:
            write_array(folder / f"{name}.npy", getattr(judged, name))
        rows = np.flatnonzero(np.isin(data.labels, part.closed))
        columns: dict[str, np.ndarray | list[str]] = {
            "id": [data.ids[row] for row in rows],
            "label": data.labels[rows],
            "label_name": [data.class_names[data.labels[row]] for row in rows],
            "is_planted": judged.triggered[rows],
            "is_trusted": judged.clean[rows],
        }
        write_table(folder / FEATURES_FILE, columns)

    inputs = [found.stages["samples"].key, origin]
    config = {"activations": asdict(plan.activations), "spec": asdict(spec), "seed": plan.seed}
    stage = found.run.stage("activations", config=config, inputs=inputs, compute=compute)
    found.stages["activations"] = stage
    found.run.publish(stage.path / FEATURES_FILE, FEATURES_FILE)
    return stage


_JUDGED = ("clean", "triggered", "doubted", "honest")


def _read_split(part: Split, judged: Stage) -> Split:
    """Return the split as the victim's activations judge it."""
    clean, triggered, doubted, honest = (read_array(judged.path / f"{name}.npy") for name in _JUDGED)
    return replace(part, clean=clean, triggered=triggered, doubted=doubted, honest=honest)


def inverted_triggers(found: Scan, plan: DefenseConfig) -> tuple[AffineTrigger, ...]:
    """Return what the flagged samples share, as triggers; none where there is too little to tell."""

    def compute(folder: Path) -> None:
        part = replace(found.split, triggered=found.split.triggered & ~found.mislabelled)
        seed = Seed(plan.seed).child("evidence")
        write_triggers(invert_triggers(*learnable(replace(found, split=part)), seed), folder)

    inputs = [found.stages["samples"].key]
    config = {"seed": plan.seed, "share": TRIGGER_PER_LABEL_SHARE}
    stage = found.run.stage("evidence", config=config, inputs=inputs, compute=compute)
    found.stages["evidence"] = stage
    return read_triggers(stage.path)


def learnable(found: Scan) -> tuple[ImageSet, Split, Scores]:
    """Return data, split and guide's scores without the reserved samples: nothing is learnt from those."""
    if not found.reserved.any():
        return found.data, found.split, found.guide
    rows = np.flatnonzero(~found.reserved)
    part = found.split
    kept = replace(
        part,
        clean=part.clean[rows],
        triggered=part.triggered[rows],
        suspicion=part.suspicion[rows],
        doubted=None if part.doubted is None else part.doubted[rows],
        shown=None if part.shown is None else part.shown[rows],
    )
    return found.data.take(rows), kept, replace(found.guide, logits=found.guide.logits[rows])
