"""What every defence that needs clean samples starts from: its settings, its samples, its time."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from clipguard.compute.recipes import Recipe
from clipguard.compute.training import LossFunction, fit
from clipguard.defenses.budget import seconds_left, seconds_of_scan, step_seconds
from clipguard.defenses.clean_slice import Origin, clean_slice, learned_and_held_out
from clipguard.defenses.protocol import Case
from clipguard.defenses.rivals.schedule import share_of_schedule
from clipguard.models.spec import Normalized
from clipguard.pipeline.config import DefenseConfig
from clipguard.seeds import Seed
from clipguard.types import ImageSet

PUBLISHED_SAMPLES: Final = 2500
"""Clean samples of the sources' schedules: 5 % of CIFAR-10."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanDataSettings:
    """The settings that all of these defences have.

    Attributes:
        origin: where the clean samples come from: the part that a scan trusts, or given ones.
        budget: times clipguard's own seconds on the case; None runs the published schedule.
        config: of the scan, and of clipguard where its seconds are asked for.
    """

    origin: Origin = "split"
    budget: float | None = None
    config: DefenseConfig = field(default_factory=DefenseConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanStart:
    """What a defence begins with.

    Attributes:
        model: a copy of the victim, to be changed.
        learned: clean samples to learn from.
        held_out: clean samples to choose thresholds by.
        seed: root of the defence's randomness.
        scan: seconds of the scan by stage, where the samples come from one.
        seconds_left: what the budget leaves for the defence itself; None without a budget.
    """

    model: Normalized
    learned: ImageSet
    held_out: ImageSet
    seed: Seed
    scan: dict[str, float]
    seconds_left: float | None

    def share(self, published_seconds: Callable[[], float]) -> float:
        """Return the share of the published schedule that is run; without a budget, nothing is measured."""
        return share_of_schedule(self.seconds_left, published_seconds)


def clean_start(case: Case, settings: CleanDataSettings, name: str) -> CleanStart:
    """Return what the defence of that name begins with.

    A scan that the clean samples come from is part of the defence: its seconds are reported, and the budget
    pays for them first. It pays as much where samples are given, so that both train for the same time.

    Raises:
        ClipguardError: too few clean samples.
    """
    seed = Seed(case.seed).child(name)
    clean = clean_slice(case, settings.origin, settings.config)
    of_budget = settings.budget is not None and not clean.scan
    spent = seconds_of_scan(case, settings.config) if of_budget else clean.scan
    learned, held_out = learned_and_held_out(clean.samples, seed.child("held out"))
    return CleanStart(
        model=case.victim,
        learned=learned,
        held_out=held_out,
        seed=seed,
        scan=clean.scan,
        seconds_left=seconds_left(case, settings.config, settings.budget, spent),
    )


def seconds_of_fit(
    model: Normalized, data: ImageSet, loss: LossFunction, recipe: Recipe, seed: Seed
) -> float:
    """Return what a training would take, from some of its steps; the model is spoilt by them."""
    batches = math.ceil(len(data) / recipe.batch_size)
    rows = np.arange(math.ceil(len(data) / batches))
    one = replace(recipe, epochs=1)
    return recipe.epochs * batches * step_seconds(lambda: fit(model, data.images, rows, loss, one, seed))
