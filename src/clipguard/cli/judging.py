"""Rates of a model on a test set that the user brings: what only somebody with the truth can know."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from clipguard.cli.poisoned import TEST, TRIGGERED, is_attack_folder, read_target_mapping
from clipguard.compute.inference import classifier_logits
from clipguard.data import ImageSource
from clipguard.data.decode import read_images
from clipguard.errors import ClipguardError
from clipguard.lab.evaluation import detection, evaluate
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.models.spec import Normalized
from clipguard.pipeline.defender import Defender
from clipguard.types import ImageSet


@dataclass(frozen=True, slots=True, kw_only=True)
class TestSet:
    """Labelled test images, and the same with the trigger where there is one.

    Attributes:
        clean: ordinary images.
        triggered: the same images in the same order with the trigger, labels still true; None without one.
        target_mapping: the class that the trigger leads each class to; None where it leads to none.
        truth: which training samples are poisoned; None where that is unknown.
    """

    # Not a test, whatever its name looks like to pytest.
    __test__ = False

    clean: ImageSource
    triggered: ImageSource | None = None
    target_mapping: Int64[np.ndarray, "k"] | None = None
    truth: PoisonTruth | None = None


def open_test(path: Path, source: ImageSource, classes: Path | None, truth: PoisonTruth | None) -> TestSet:
    """Return the test set at `path`: a plain labelled source, or a folder that `clipguard attack` wrote.

    Its limits are those of `source`, the training data.

    Raises:
        ClipguardError: it cannot be opened, or it names other classes than the training data.
    """

    def opened(file: Path) -> ImageSource:
        return _same_classes(ImageSource.open(file, classes=classes, limits=source.limits), source)

    if not is_attack_folder(path):
        return TestSet(clean=opened(path))
    if not (path / TEST).exists():
        raise ClipguardError(f"{path} has no {TEST}: run clipguard attack again with --test")
    clean, triggered = opened(path / TEST), None
    if (path / TRIGGERED).exists():
        triggered = opened(path / TRIGGERED)
        if not np.array_equal(triggered.labels, clean.labels):
            raise ClipguardError(
                f"{TRIGGERED} and {TEST} of {path} differ in labels: run clipguard attack again"
            )
    target_mapping = read_target_mapping(path, len(clean.class_names))
    return TestSet(clean=clean, triggered=triggered, target_mapping=target_mapping, truth=truth)


def _same_classes(test: ImageSource, source: ImageSource) -> ImageSource:
    if test.class_names != source.class_names:
        raise ClipguardError(
            f"test set {test.location} has the classes {_some(test.class_names)} but {source.location} has "
            f"{_some(source.class_names)}: give both the same, or pass --classes"
        )
    return test


def _some(names: tuple[str, ...]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def check_test(test: TestSet, tell: Callable[[int, int], None] | None = None) -> list[str]:
    """Return a warning where some images of the test set are unreadable; decodes all of them once.

    Raises:
        ClipguardError: too many of them are.
    """
    smallest = (1, 1)
    read, _ = _decoded(test, smallest, tell)
    lost = len(test.clean) + len(test.clean.refused) - len(read)
    if not lost:
        return []
    where = test.clean.location
    return [f"{lost} images of the test set {where} could not be read: no rate counts them, on any side"]


def _decoded(
    test: TestSet, size: tuple[int, int], tell: Callable[[int, int], None] | None = None
) -> tuple[ImageSet, ImageSet | None]:
    """Return the images of those rows that can be read, and read with the trigger if there is one."""
    clean, _ = read_images(test.clean, size, tell)
    if test.triggered is None:
        return clean, None
    triggered, _ = read_images(test.triggered, size)
    if len(clean) == len(triggered) == len(test.clean):
        return clean, triggered
    of_clean, of_triggered = (
        np.flatnonzero(np.isin(np.array(source.ids), np.array(read.ids)))
        for source, read in ((test.clean, clean), (test.triggered, triggered))
    )
    _, first, second = np.intersect1d(of_clean, of_triggered, assume_unique=True, return_indices=True)
    if not len(first):
        raise ClipguardError(f"no image of {test.clean.location} can be read without and with the trigger")
    return clean.take(first), triggered.take(second)


def judge(defender: Defender, test: TestSet | None) -> dict[str, Any]:
    """Return `before` and `after` of a fitted defender, and `detection` where the truth is known.

    Raises:
        ClipguardError: too many test images are unreadable.
    """
    if test is None:
        before, after = defender.own_figures()
        return {"before": before, "after": after}
    clean, triggered = _decoded(test, defender.spec_.input_size)
    where = f"test set {test.clean.location}"
    rates = [
        {**_rates(model, clean, triggered, test.target_mapping), "measured_on": where}
        for model in (defender.before_, defender.model_)
    ]
    found, truth = defender.found_, test.truth
    told: dict[str, Any] = {"before": rates[0], "after": rates[1]}
    if truth is not None and len(truth.poisoned) == len(found.data):
        told["detection"] = detection(found.entropy, found.split, found.data, truth)
    return told


def _rates(
    model: Normalized,
    clean: ImageSet,
    triggered: ImageSet | None,
    target_mapping: Int64[np.ndarray, "k"] | None,
) -> dict[str, float | int]:
    attacked: Float32[np.ndarray, "n k"] | None = None
    if triggered is not None:
        attacked = classifier_logits(model, triggered.images)
    target_labels = None if target_mapping is None else target_mapping[clean.labels]
    result = evaluate(classifier_logits(model, clean.images), attacked, clean.labels, target_labels)
    return {name: rate for name, rate in asdict(result).items() if rate is not None}
