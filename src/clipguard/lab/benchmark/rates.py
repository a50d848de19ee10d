"""Rates of one model on one test set, with every trigger of the cell."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Int64

from clipguard.compute.inference import classifier_logits
from clipguard.lab.attacks import Attack, parts_of, triggered
from clipguard.lab.benchmark.results import Row
from clipguard.lab.evaluation import evaluate
from clipguard.models.spec import Normalized
from clipguard.runs.summary import METRICS
from clipguard.types import Images, ImageSet

SUCCESS: Final = 0.8
"""Attack success of the undefended victim from which on defences are scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggeredTest:
    """The test images with one trigger on them, and the classes that it is to send them to."""

    images: Images | None
    target_labels: Int64[np.ndarray, "n"] | None


def triggered_tests(attack: Attack, test: ImageSet) -> tuple[TriggeredTest, ...]:
    """Return one triggered test a trigger: several where several attackers act together."""
    k = len(test.class_names)
    images = np.asarray(test.images)
    return tuple(
        TriggeredTest(images=triggered(part, images), target_labels=part.target_labels(test.labels, k))
        for part in parts_of(attack)
    )


def rates_of(model: Normalized, test: ImageSet, triggered_sets: tuple[TriggeredTest, ...]) -> Row:
    """Return the rates of a model, as fractions; the worst over the triggers where there are several.

    `attack_successes` holds the attack success of each trigger. `class_recalls` holds the clean accuracy of
    each class, None for a class without a test image.
    """
    clean = classifier_logits(model, test.images)
    results = []
    for one in triggered_sets:
        attacked = None if one.images is None else classifier_logits(model, one.images)
        results.append(evaluate(clean, attacked, test.labels, one.target_labels))
    hits = clean.argmax(1) == test.labels
    classes = (hits[test.labels == label] for label in range(len(test.class_names)))

    def known(name: str) -> list[Any]:
        return [value for result in results if (value := getattr(result, name)) is not None]

    return {
        **{metric.name: metric.worst(known(metric.name)) for metric in METRICS},
        "n": len(test),
        "attack_n": min(known("attack_n"), default=None),
        "attack_successes": known("attack_success"),
        "class_recalls": [float(of_class.mean()) if len(of_class) else None for of_class in classes],
    }


def attack_succeeded(successes: list[float]) -> bool | None:
    """Return whether every backdoor of an undefended victim works; None where there is no backdoor."""
    return min(successes) >= SUCCESS if successes else None
