"""Published schedules of trainings: repeated for fewer samples, and cut by one share to fit into a budget."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
from jaxtyping import Int64

from clipguard.compute.inference import classifier_logits
from clipguard.compute.recipes import Recipe
from clipguard.compute.training import EpochHook, RowChoice, cross_entropy, fit
from clipguard.defenses.budget import affordable, step_seconds
from clipguard.defenses.protocol import Case
from clipguard.models.spec import Normalized
from clipguard.seeds import Seed
from clipguard.types import ImageSet, Rows

PUBLISHED_CROP: Final = 0.125
"""Padding of random crops in the sources, as a share of the side: 4 of 32 pixels."""

_FEWEST: Final = 32
"""Samples of a cut pass, where there are so many: BatchNorm's statistics need some."""

_SCORED: Final = 500
"""Images whose inference is timed."""


def share_of_schedule(allowed: float | None, published_seconds: Callable[[], float]) -> float:
    """Return the share of a published schedule that the seconds allowed pay for.

    Args:
        allowed: seconds; None pays for everything.
        published_seconds: measures what the whole schedule takes; called only where that matters.
    """
    return 1.0 if allowed is None else affordable(published_seconds(), allowed)


def training_seconds(model: Normalized, data: ImageSet, recipe: Recipe, seed: Seed) -> float:
    """Return the seconds of one pass of training over the data, by some steps of a copy of the model."""
    rows = seed.generator().permutation(len(data))[: recipe.batch_size]
    batch, trial = data.take(np.sort(rows)), copy.deepcopy(model)
    loss, one = cross_entropy(batch.labels), replace(recipe, epochs=1)
    step = step_seconds(lambda: fit(trial, batch.images, np.arange(len(batch)), loss, one, seed))
    return step * len(data) / len(batch)


def inference_seconds(model: Normalized, images: Rows) -> float:
    """Return the seconds of one pass of inference over the images."""
    some = images[:_SCORED]
    return step_seconds(lambda: classifier_logits(model, some)) * len(images) / len(some)


def repeated(passes: int, samples: int, published_samples: int) -> int:
    """Return a published number of passes, repeated where they are over fewer samples than in the source.

    A tenth of the samples gives a tenth of the steps, and a learning rate needs its steps: after a few large
    ones, a net has forgotten more than it has learned again.

    Args:
        passes: over the samples, or rounds, as published.
        samples: that are learned from.
        published_samples: those of the source; 0 leaves the passes as they are.
    """
    return max(passes, round(passes * published_samples / samples))


def portions(passes: int, share: float) -> tuple[float, ...]:
    """Return the part of each pass that a share of some passes takes, such as (1, 1, 0.4) for 2.4 ones."""
    left = passes * share
    whole = int(left + 1e-9)
    rest = left - whole
    return (1.0,) * whole + ((rest,) if rest > 1e-9 or not whole else ())


def rows_of_passes(rows: Int64[np.ndarray, "m"], parts: tuple[float, ...], seed: Seed) -> RowChoice:
    """Return what chooses the rows of each pass: all of them, or for a part of a pass so many at random."""
    return lambda epoch: drawn(rows, parts[epoch], seed.child("rows", epoch))


def drawn(rows: Int64[np.ndarray, "m"], part: float, seed: Seed) -> Int64[np.ndarray, "p"]:
    """Return a part of the rows at random, but all of them for 1, and hardly less than a batch."""
    count = max(min(_FEWEST, len(rows)), round(part * len(rows)))
    chosen: Int64[np.ndarray, " p"] = np.sort(seed.generator().permutation(rows)[:count])
    return chosen


def reporting(case: Case, title: str, total: int) -> EpochHook:
    """Return what passes the number of finished epochs or steps on to the progress of the case."""

    def report(done: int) -> None:
        if case.progress is not None:
            case.progress(title, done, total)

    return report
