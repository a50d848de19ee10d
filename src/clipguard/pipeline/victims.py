"""The model that a user gives to be repaired: loaded, and held against the data before any repair."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Int64
from torch import nn

from clipguard.compute.inference import classifier_logits
from clipguard.errors import ClipguardError
from clipguard.models.header import read_class_names
from clipguard.models.spec import ModelSpec, Normalized, check_sound, load, read_spec, weights_digest
from clipguard.pipeline.scan import Scan

MOST_ASKED: Final = 1000
"""Trusted samples on which a given model is tried, spread over the classes as evenly as they can be."""

ABOVE_CHANCE: Final = 0.15
"""Share of the way from chance to perfect that a model of these data must have come.

A model that was trained on them gives most of them their labels, weak ones more than a third. Of one that is
given its images in another way, or its classes in another order, little more than chance is left. The line is
held against the upper bound of the rate, so that a small data set refuses nobody by accident.
"""

CONFIDENCE: Final = 0.98
"""Of the two-sided interval whose upper bound is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """A model to repair.

    Attributes:
        model: itself.
        spec: how it is built.
        origin: key of its training, or hash of its weights.
        name: what to call it in a message.
        notes: what a user should know of it, one sentence each.
    """

    model: Normalized
    spec: ModelSpec
    origin: str
    name: str
    notes: tuple[str, ...] = ()


def given_victim(model: str | Path | nn.Module, spec: ModelSpec | None, class_names: Sequence[str]) -> Victim:
    """Return the model to repair.

    Raises:
        ClipguardError: no spec for a foreign file or a module, another class count, the same classes in
            another order, or an unreadable file.
    """
    name, notes = "given", tuple[str, ...]()
    if isinstance(model, nn.Module):
        if spec is None:
            raise ClipguardError("a module needs a ModelSpec: its preprocessing and number of classes")
        # A copy: evaluation mode would otherwise be switched on in the user's own module.
        loaded = copy.deepcopy(model if isinstance(model, Normalized) else Normalized(model, spec))
    else:
        name = str(model)
        spec = spec or read_spec(Path(model))
        if spec is None:
            raise ClipguardError(
                f"model {model} does not say its architecture: give it, with the input size, in a ModelSpec"
            )
        notes = _compared(Path(model), class_names)
        loaded = load(Path(model), spec)
    if spec.num_classes != len(class_names):
        raise ClipguardError(
            f"the model has {spec.num_classes} classes but the data set names {len(class_names)}"
        )
    check_sound(loaded, spec)
    return Victim(model=loaded.eval(), spec=spec, origin=weights_digest(loaded), name=name, notes=notes)


def _compared(path: Path, class_names: Sequence[str]) -> tuple[str, ...]:
    """Return what is to be said of the class names in a file's header.

    Raises:
        ClipguardError: they are the data's in another order.
    """
    own, names = read_class_names(path), tuple(class_names)
    if own is None or own == names or len(own) != len(names):
        return ()
    first = next(i for i, (one, other) in enumerate(zip(own, names, strict=True)) if one != other)
    differ = f"class {first} is {own[first]!r} in model {path} but {names[first]!r} in the data"
    if sorted(own) == sorted(names):
        raise ClipguardError(
            f"{differ}, and all names are the same: number the labels of the data as the model does, or "
            "reorder the rows of its last layer"
        )
    return (f"{differ}: if that is more than another spelling, the two do not belong together",)


def check_fit(victim: Victim, scan: Scan) -> None:
    """Check that a given model has learned data such as these, from samples that the scan trusts.

    Args:
        victim: the model.
        scan: with the images as the model takes them.

    Raises:
        ClipguardError: the model is near chance, so that something between it and the data does not agree.
    """
    from scipy.stats import binomtest

    labels = scan.data.labels
    rows = _to_ask(np.flatnonzero(scan.partition.clean), labels)
    if not len(rows):
        return
    given = labels[rows]
    predicted = classifier_logits(victim.model, scan.data.images[rows]).argmax(1)
    right, chance = int((predicted == given).sum()), 1 / len(np.unique(given))
    most = binomtest(right, len(rows)).proportion_ci(CONFIDENCE).high
    if most >= chance + ABOVE_CHANCE * (1 - chance):
        return
    order = _in_best_order(given, predicted, scan.num_classes)
    hint = f" (with its classes in another order it would be right on {order:.1%})" if order > 0.5 else ""
    raise ClipguardError(
        f"model {victim.name} is right on {right / len(rows):.1%} of {len(rows)} trusted samples, chance is "
        f"{chance:.1%}{hint}: check the order of classes, mean and std, resize and input size"
    )


def _to_ask(clean: Int64[np.ndarray, "m"], labels: Int64[np.ndarray, "n"]) -> Int64[np.ndarray, "l"]:
    """Return clean samples in ascending order, equally many of each class where there are as many."""
    present = np.unique(labels[clean])
    each = -(-MOST_ASKED // max(1, len(present)))
    some = [clean[labels[clean] == label][:each] for label in present]
    return np.sort(np.concatenate([*some, np.zeros(0, np.int64)]))


def _in_best_order(given: Int64[np.ndarray, "l"], predicted: Int64[np.ndarray, "l"], k: int) -> float:
    """Return the accuracy if each answer meant another class, no two the same: the best that is possible."""
    from scipy.optimize import linear_sum_assignment

    counts = np.bincount(k * given + predicted, minlength=k * k).reshape(k, k)
    return float(counts[linear_sum_assignment(counts, maximize=True)].sum() / len(given))
