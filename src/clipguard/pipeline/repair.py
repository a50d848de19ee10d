"""What is made of a scan: a victim, its repair, or a model without the flagged samples."""

from dataclasses import replace
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Int64

from clipguard.compute.classifiers import ClassifierConfig
from clipguard.compute.cross_validation import Groups, fold_numbers
from clipguard.compute.recipes import Recipe
from clipguard.errors import ClipguardError
from clipguard.mitigation.mirroring import bears_mirroring
from clipguard.models.spec import ModelSpec, Normalized
from clipguard.pipeline.computing import FEATURES_FILE, Repair, Training
from clipguard.pipeline.config import DefenseConfig
from clipguard.pipeline.scan import Scan
from clipguard.pipeline.scanning import prepared_images, with_triggers
from clipguard.pipeline.stages import (
    FEATURE_SEPARATION,
    MODEL_IMAGES,
    MODEL_TRIGGER_INVERSION,
    UNLEARNING,
)
from clipguard.runs import FinishedStage, Stage, read_array
from clipguard.seeds import Seed, Stream
from clipguard.types import Preprocessing, State

NOTHING: Final = np.zeros(0, np.int64)

HELD_OUT: Final = 0.05
"""Share of the data that the training of a victim here leaves out."""


def held_out_rows(
    labels: Int64[np.ndarray, "n"], seed: Seed, groups: Groups | None = None
) -> Bool[np.ndarray, "n"]:
    """Return the random twentieth that a victim is not trained on, so that its accuracy can be measured.

    A class that would lose more than half of its samples is so small that it loses none. With groups, whole
    ones are held out, about a twentieth; none where there are fewer than twenty.
    """
    n, draw = len(labels), seed.generator()
    mask = np.zeros(n, dtype=bool)
    if groups is None:
        mask[draw.choice(n, round(HELD_OUT * n), replace=False)] = True
    else:
        folds = round(1 / HELD_OUT)
        # The largest groups go into the first folds, so that the last one is empty where there are few.
        mask |= fold_numbers(n, folds, draw, groups) == folds - 1
    counts = np.bincount(labels)
    most = 2 * np.bincount(labels[mask], minlength=len(counts)) > counts
    lost = mask & most[labels]
    return mask & ~(lost if groups is None else np.isin(groups, groups[lost]))


def with_held_out(scan: Scan) -> Scan:
    """Return the scan with a random twentieth held out: no gradient step uses it.

    The scan, and so its triggers and estimates, has seen it.
    """
    held_out = held_out_rows(scan.data.labels, scan.context.seed(Stream.HELD_OUT), scan.data.groups)
    return replace(scan, partition=scan.partition.moved(held_out, State.HELD_OUT))


def for_model(scan: Scan, view: Preprocessing) -> Scan:
    """Return the scan with images as a model takes them."""
    if view.geometry == scan.context.view:
        return scan
    data, key = prepared_images(scan.context, view, MODEL_IMAGES)
    return replace(scan, data=data, images_key=key)


def with_model_triggers(scan: Scan, before: Scan) -> Scan:
    """Return the scan with triggers on its images, which `for_model` may have changed from those `before`."""
    if scan.images_key == before.images_key:
        return scan
    return with_triggers(scan, MODEL_TRIGGER_INVERSION)


def spec_to_train(
    config: DefenseConfig, num_classes: int, size: tuple[int, int], like: ModelSpec | None
) -> ModelSpec:
    """Return how a classifier that is trained here is built; it prepares images as the given model `like`."""
    spec = ModelSpec.sized(architecture=config.architecture, num_classes=num_classes, input_size=size)
    return spec if like is None else replace(spec, preprocessing=like.preprocessing)


def recipe_like(scan: Scan, model: Normalized) -> Recipe:
    """Return how a model is trained anew: without mirroring where the one before it does not bear that."""
    recipe = scan.context.config.victim
    flip = recipe.flip and bears_mirroring(model, scan.data, scan.partition.clean)
    return replace(recipe, flip=flip)


def train(
    scan: Scan,
    rows: Bool[np.ndarray, "n"],
    spec: ModelSpec,
    stage: Stage[Any],
    recipe: Recipe | None = None,
) -> FinishedStage:
    """Return the stage of a classifier trained from scratch on the samples of `rows`.

    Without a recipe, that of the settings is taken.

    Raises:
        ClipguardError: a class would lose all its samples.
    """
    data, config = scan.data, scan.context.config
    counts = np.bincount(data.labels[rows], minlength=scan.num_classes)
    present = np.bincount(data.labels, minlength=scan.num_classes) > 0
    if lost := [data.class_names[i] for i in np.flatnonzero((counts == 0) & present)]:
        raise ClipguardError(f"class {lost[0]!r} has no sample left to train on: too few are clean")
    seed = scan.context.seed(_STREAMS[stage.name])
    classifier = ClassifierConfig(spec=spec, recipe=recipe or config.victim, seed=seed)
    return scan.context.finish(stage, Training(scan=scan, rows=rows, classifier=classifier))


_STREAMS: Final = {"victim": "victim", "retraining": "retrain"}


def repair(
    scan: Scan, victim: Normalized, spec: ModelSpec, origin: str, unseen: Int64[np.ndarray, "m"] = NOTHING
) -> FinishedStage | None:
    """Return the stage of the victim (whose key or content hash is `origin`) after unlearning.

    It is measured on trusted samples that the victim has not learned, if there are any. None where nothing is
    flagged that could be unlearned: all of it was held out, or the victim's features have cleared it.
    """
    given = _by_features(Repair(scan=scan, victim=victim, spec=spec, origin=origin, unseen=unseen))
    partition = given.scan.partition
    if not partition.flagged.any():
        return None
    if scan.context.config.unlearning.recipe.flip:
        given = replace(given, bears_mirroring=bears_mirroring(victim, scan.data, partition.clean))
    return scan.context.finish(UNLEARNING, given)


def _by_features(given: Repair) -> Repair:
    """Return the repair with the partition as the victim's features judge it, where labels are flagged.

    It publishes what became of every sample of the quarantined classes.
    """
    scan, context = given.scan, given.scan.context
    if not len(scan.partition.soft_rows) or not context.config.feature_separation.rounds:
        return given
    folder = context.finish(FEATURE_SEPARATION, given).path
    context.run.publish(folder / FEATURES_FILE, FEATURES_FILE)
    state, clean_share = (read_array(folder / f"{name}.npy") for name in ("state", "clean_share"))
    return replace(
        given, scan=replace(scan, partition=replace(scan.partition, state=state, clean_share=clean_share))
    )
