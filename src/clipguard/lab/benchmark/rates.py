"""Rates of one model on one test set, with every trigger of the cell."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Int64

from clipguard.compute.inference import classifier_logits
from clipguard.lab.attacks import Attack, parts_of, triggered
from clipguard.lab.benchmark.results import Row
from clipguard.lab.evaluation import evaluate
from clipguard.models.spec import Normalized
from clipguard.runs.summary import METRICS
from clipguard.types import Images, ImageSet

SUCCESS: Final = 0.8
"""Attack success of the undefended victim from which on defences are scored."""

TriggeredTest = tuple[Images | None, Int64[np.ndarray, "n"] | None]
"""The test images with one trigger on them, and the classes that it is to send them to."""


def triggered_tests(attack: Attack, test: ImageSet) -> tuple[TriggeredTest, ...]:
    """Return one triggered test a trigger: several where several attackers act together."""
    k, images = len(test.class_names), np.asarray(test.images)
    return tuple((triggered(part, images), part.target_labels(test.labels, k)) for part in parts_of(attack))


def rates_of(model: Normalized, test: ImageSet, triggered_sets: tuple[TriggeredTest, ...]) -> Row:
    """Return the rates of a model, as fractions; the worst over the triggers where there are several.

    `attack_successes` holds the attack success of each trigger. `class_recalls` holds the clean accuracy of
    each class, None for a class without a test image.
    """
    clean = classifier_logits(model, test.images)
    results = [
        evaluate(clean, None if images is None else classifier_logits(model, images), test.labels, targets)
        for images, targets in triggered_sets
    ]

    def known(name: str) -> list[Any]:
        return [value for value in (getattr(result, name) for result in results) if value is not None]

    hits = clean.argmax(1) == test.labels
    classes = (hits[test.labels == label] for label in range(len(test.class_names)))
    return {
        **{metric.name: metric.worst(known(metric.name)) for metric in METRICS},
        "n": len(test),
        "attack_n": min(known("attack_n"), default=None),
        "attack_successes": known("attack_success"),
        "class_recalls": [float(of_class.mean()) if len(of_class) else None for of_class in classes],
    }


def hits_of(model: Normalized, test: ImageSet) -> Bool[np.ndarray, "t"]:
    """Return which clean test images a model gets right."""
    hits: Bool[np.ndarray, " t"] = classifier_logits(model, test.images).argmax(1) == test.labels
    return hits


def of_target(
    labels: Int64[np.ndarray, "t"], triggered_sets: tuple[TriggeredTest, ...]
) -> Bool[np.ndarray, "t"]:
    """Return which test images are of the classes that the triggers lead to.

    A trigger for images of one class leaves the others at their own.
    """
    targets = {int(t) for _, led in triggered_sets if led is not None for t in np.unique(led[led != labels])}
    return np.isin(labels, list(targets))


def paired(
    before: Bool[np.ndarray, "t"], after: Bool[np.ndarray, "t"], target: Bool[np.ndarray, "t"]
) -> dict[str, int]:
    """Return how many test images two models judge differently, in all and of the target class.

    Args:
        before: which images the victim gets right.
        after: which the repaired model gets right.
        target: which are of the target class.
    """
    lost, gained = before & ~after, after & ~before
    return {
        "n": len(before),
        "lost": int(lost.sum()),
        "gained": int(gained.sum()),
        "target_n": int(target.sum()),
        "target_lost": int((lost & target).sum()),
        "target_gained": int((gained & target).sum()),
    }


def mean_row(rows: Sequence[Row]) -> Row:
    """Return the mean of each number of several trainings' rows, and the range of their attack success."""
    success = [one["attack_success"] for one in rows if one["attack_success"] is not None]
    spread = {"attack_success_range": [min(success), max(success)]} if success else {}
    return {name: _mean([one[name] for one in rows]) for name in rows[0]} | {"trainings": len(rows)} | spread


def _mean(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, dict):
        return {name: _mean([one[name] for one in values]) for name in first}
    if isinstance(first, list):
        return [_mean(list(some)) for some in zip(*values, strict=True)]
    if isinstance(first, float) and None not in values:
        return sum(values) / len(values)
    return first


def attack_succeeded(successes: list[float]) -> bool | None:
    """Return whether every backdoor of an undefended victim works; None where there is no backdoor."""
    return min(successes) >= SUCCESS if successes else None
