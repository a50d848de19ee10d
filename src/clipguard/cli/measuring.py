"""Rates of a model on a test set that the user brings, and of the scan where the ground truth is known."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from clipguard.cli.poisoned import TEST, TRIGGERED, is_attack_folder, read_target_mapping
from clipguard.compute.inference import classifier_logits
from clipguard.data import ImageSource, columns_of_test
from clipguard.data.columns import NO_COLUMNS
from clipguard.data.decode import read_images
from clipguard.errors import ClipguardError
from clipguard.lab.evaluation import detection, evaluate
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.models.spec import Normalized
from clipguard.pipeline.defender import Defender
from clipguard.pipeline.summary import own_rates
from clipguard.runs.summary import Rates
from clipguard.types import ImageSet, Preprocessing, StepProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSet:
    """Labelled test images, and the same with the trigger where there is one.

    Attributes:
        clean: ordinary images.
        triggered: the same images in the same order with the trigger, labels still true; None without one.
        target_mapping: the class that the trigger sends each class to; None where it sends none.
        truth: which training samples are poisoned; None where that is unknown.
    """

    clean: ImageSource
    triggered: ImageSource | None = None
    target_mapping: Int64[np.ndarray, "k"] | None = None
    truth: PoisonTruth | None = None


def open_test(
    path: Path, source: ImageSource, classes: Path | None, truth: PoisonTruth | None
) -> EvaluationSet:
    """Return the test set at `path`: a plain labelled source, or a folder that `clipguard attack` wrote.

    Its limits are those of `source`, the training data. So are its columns, if it has any.

    Raises:
        ClipguardError: it cannot be opened, or it names other classes than the training data.
    """
    columns = NO_COLUMNS if is_attack_folder(path) else columns_of_test(path, source.columns)

    def opened(file: Path) -> ImageSource:
        test = ImageSource.open(file, classes=classes, limits=source.limits, columns=columns)
        if test.class_names != source.class_names:
            raise ClipguardError(
                f"test set {test.location} has the classes {_some(test.class_names)} but {source.location} "
                f"has {_some(source.class_names)}: give both the same, or pass --classes"
            )
        return test

    if not is_attack_folder(path):
        return EvaluationSet(clean=opened(path))
    if not (path / TEST).exists():
        raise ClipguardError(f"{path} has no {TEST}: run clipguard attack again with --test")
    clean, triggered = opened(path / TEST), None
    if (path / TRIGGERED).exists():
        triggered = opened(path / TRIGGERED)
        if not np.array_equal(triggered.labels, clean.labels):
            raise ClipguardError(
                f"{TRIGGERED} and {TEST} of {path} differ in labels: run clipguard attack again"
            )
    mapping = read_target_mapping(path, len(clean.class_names))
    return EvaluationSet(clean=clean, triggered=triggered, target_mapping=mapping, truth=truth)


def _some(names: tuple[str, ...]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def check_test(test: EvaluationSet, progress: StepProgress | None = None) -> list[str]:
    """Return a warning where some images of the test set are unreadable; decodes all of them once.

    Raises:
        ClipguardError: too many of them are.
    """
    read, _ = _decoded(test, Preprocessing(size=(1, 1)), progress)
    lost = len(test.clean) + len(test.clean.refused) - len(read)
    if not lost:
        return []
    where = test.clean.location
    return [f"{lost} images of the test set {where} could not be read: no rate counts them, on any side"]


def _decoded(
    test: EvaluationSet, preprocessing: Preprocessing, progress: StepProgress | None = None
) -> tuple[ImageSet, ImageSet | None]:
    """Return the images of those rows that can be read, and read with the trigger if there is one."""
    clean, _ = read_images(test.clean, preprocessing, progress)
    if test.triggered is None:
        return clean, None
    triggered, _ = read_images(test.triggered, preprocessing)
    if len(clean) == len(triggered) == len(test.clean):
        return clean, triggered
    # The two belong together by their rows: their ids may differ.
    clean_rows, triggered_rows = (
        np.flatnonzero(np.isin(np.array(source.ids), np.array(read.ids)))
        for source, read in ((test.clean, clean), (test.triggered, triggered))
    )
    _, first, second = np.intersect1d(clean_rows, triggered_rows, assume_unique=True, return_indices=True)
    if not len(first):
        raise ClipguardError(f"no image of {test.clean.location} can be read without and with the trigger")
    return clean.take(first), triggered.take(second)


def measure(defender: Defender, test: EvaluationSet | None) -> dict[str, Any]:
    """Return what `write_summary` takes of a fitted defender: `before` and `after`, the rates of its models.

    Without a test set they are measured on its own data. With the ground truth, `detection` says how the scan
    compares with it.

    Raises:
        ClipguardError: too many test images are unreadable.
    """
    if test is None:
        return dict(zip(("before", "after"), own_rates(defender), strict=True))
    clean, triggered = _decoded(test, defender.spec_.preprocessing)
    models = {"before": defender.before_, "after": defender.model_}
    measured: dict[str, Any] = {name: _rates(model, clean, triggered, test) for name, model in models.items()}
    scan, truth = defender.scan_, test.truth
    if truth is not None and len(truth.poisoned) == len(scan.data):
        measured["detection"] = detection(scan.entropy, defender.partition_, scan.data, truth)
    return measured


def _rates(model: Normalized, clean: ImageSet, triggered: ImageSet | None, test: EvaluationSet) -> Rates:
    return evaluate(
        classifier_logits(model, clean.images),
        None if triggered is None else classifier_logits(model, triggered.images),
        clean.labels,
        None if test.target_mapping is None else test.target_mapping[clean.labels],
        f"test set {test.clean.location}",
    )
