"""ASD: learn by MixMatch from a pool of samples that is split off anew before each pass."""

import copy
import time
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from jaxtyping import Float64, Int64
from torch import nn

from clipguard.compute.device import array, tensor
from clipguard.compute.inference import classifier_logits
from clipguard.compute.recipes import Recipe
from clipguard.compute.training import augment, cross_entropy, fit
from clipguard.defenses.budget import affordable, cut, seconds_left, step_seconds
from clipguard.defenses.clean_slice import Origin
from clipguard.defenses.protocol import Case, Repaired
from clipguard.defenses.rivals.clean_seeds import SeededSet, seeded_set
from clipguard.defenses.rivals.label_losses import symmetric_cross_entropies
from clipguard.defenses.rivals.mixmatch import MixMatch, MixMatchConfig
from clipguard.defenses.rivals.schedule import (
    drawn,
    inference_seconds,
    reporting,
    training_seconds,
)
from clipguard.models.spec import Normalized, build
from clipguard.pipeline.config import DefenseConfig
from clipguard.seeds import Seed
from clipguard.types import ImageSet, chunks

_META: Final = Recipe(epochs=1, optimizer="adam", lr=0.015, weight_decay=0.0, warmup=0.0, constant=True)
"""How the copy of the meta-split is trained: batches of 128, with crops and flips."""

_FEWEST: Final = 12
"""Passes of a cut schedule, where no fewer are left: three or more for each phase."""

_GROWS_EVERY: Final = 1 / 24
"""Share of the schedule after which the pool grows: 5 of 120 passes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How much of the published schedule is run.

    Attributes:
        passes: before each of them, the pool is split off anew.
        steps: of MixMatch in each.
        part: of the data that the copy of the meta-split learns from.
    """

    passes: int
    steps: int
    part: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveSplitting:
    """ASD: Gao et al., "Backdoor Defense via Adaptively Splitting Poisoned Dataset" (CVPR 2023).

    A net from scratch learns the labels of a pool by MixMatch; all others count as unlabelled. In the first
    half of the schedule, the pool is the seeds and of each class what has the lowest losses. In the next
    quarter, it is the half of all with the lowest losses. In the last, it is the half whose losses fall least
    while a copy of the net learns everything for one pass.

    Published are all values, by the authors' repository. Left open and chosen here: a class lends the pool at
    most half of its samples, which matters where it has few; a forward pass takes mixed samples of both kinds
    together. "The last two stages and the head" of the copy are, in any network, the second half of its
    blocks, in the order of its children, and whatever follows. A schedule is cut in passes, and below 12 of
    them in the steps of each. Authors draw the seeds by the truth; by default, these are of clipguard's clean
    part.

    Attributes:
        budget: times clipguard's own seconds on the case; None runs the published schedule.
        config: clipguard's settings, for its seconds and its scan.
        origin: of the seeds: `split` off by clipguard's scan, or `given`.
        per_class: seeds of each class, and by how many samples of each class the pool grows.
        passes: of all three phases.
        steps: of MixMatch in each pass.
        unlabelled: weight of the unlabelled samples' loss at the end; it grows evenly from 0.
        mixmatch: settings of MixMatch.
    """

    budget: float | None = None
    config: DefenseConfig = field(default_factory=DefenseConfig)
    origin: Origin = "split"
    per_class: int = 10
    passes: int = 120
    steps: int = 1024
    unlabelled: float = 15.0
    mixmatch: MixMatchConfig = field(default_factory=MixMatchConfig)

    def defend(self, case: Case) -> Repaired:
        """Return a net of its own, trained from scratch; it needs no victim.

        Raises:
            ClipguardError: there are no clean samples to begin from, or the training diverged.
        """
        seed = Seed(case.seed).child("asd")
        model = build(case.spec, seed.child("init"))
        seeded = seeded_set(case, self.origin, self.per_class, self.config)
        schedule = self._schedule(case, model, seconds_left(case, self.config, self.budget, seeded.seconds))
        began, report = time.monotonic(), reporting(case, "ASD: train", schedule.passes)
        training = MixMatch(model, seeded.images, seeded.labels, self.mixmatch)
        for number in range(schedule.passes):
            here = seed.child("pass", number)
            pool = self._pool(model, seeded, number / schedule.passes, schedule.part, here)
            rest = np.setdiff1d(np.arange(seeded.untrusted), pool)
            reached = (number + np.arange(schedule.steps) / schedule.steps) / schedule.passes
            training.train(pool, rest, [float(at) * self.unlabelled for at in reached], here)
            report(number + 1)
        share = schedule.passes * schedule.steps / (self.passes * self.steps)
        return Repaired(
            model=model,
            seconds={**seeded.seconds, "training": time.monotonic() - began},
            notes={"schedule_share": share, "seeds": len(seeded.seeds), "pool": len(pool)},
        )

    def _schedule(self, case: Case, model: Normalized, allowed: float | None) -> Schedule:
        if allowed is None:
            return Schedule(passes=self.passes, steps=self.steps)
        scoring = inference_seconds(model, case.data.images)
        # The meta-split is made before a quarter of the passes.
        training = self.steps * self._step_seconds(model, case.data)
        training += training_seconds(model, case.data, _META, Seed(0)) / 4
        share = affordable(self.passes * (training + scoring), allowed)
        passes = max(min(_FEWEST, self.passes), round(share * self.passes))
        # Scoring takes its time however few steps follow it.
        part = min(1.0, max(0.0, allowed - passes * scoring) / (passes * training))
        return Schedule(passes=passes, steps=cut(self.steps, part), part=part)

    def _step_seconds(self, model: Normalized, data: ImageSet) -> float:
        some = data.take(np.arange(min(len(data), 2 * self.mixmatch.batch_size)))
        trial = MixMatch(copy.deepcopy(model), some.images, some.labels, self.mixmatch)
        rows = np.arange(len(some))
        return step_seconds(lambda: trial.train(rows, rows, [self.unlabelled], Seed(0)))

    def _pool(
        self, model: Normalized, seeded: SeededSet, reached: float, part: float, seed: Seed
    ) -> Int64[np.ndarray, "p"]:
        """Return the rows whose labels are learnt, after a share of the schedule."""
        n = seeded.untrusted
        if reached < 0.5:
            growth = self.per_class * int(reached / _GROWS_EVERY + 1e-9)
            if not growth:
                return seeded.seeds
            return lowest_of_each_class(_losses(model, seeded, seed.child("views")), seeded, growth)
        losses = _losses(model, seeded, seed.child("views"))
        if reached >= 0.75:
            learnt = _after_learning_everything(model, seeded, part, seed.child("meta"))
            losses = losses - _losses(learnt, seeded, seed.child("views"))
        return np.sort(np.argsort(losses, kind="stable")[: n // 2])


def lowest_of_each_class(
    losses: Float64[np.ndarray, "m"], seeded: SeededSet, growth: int
) -> Int64[np.ndarray, "p"]:
    """Return the seeds and so many other rows of each class with the lowest losses, at most half of it."""
    others = np.setdiff1d(np.arange(seeded.untrusted), seeded.seeds)
    order = others[np.argsort(losses[others], kind="stable")]
    labels = seeded.labels[: seeded.untrusted]
    chosen = [seeded.seeds]
    for label in np.unique(labels):
        of_class = order[labels[order] == label]
        chosen.append(of_class[: min(growth, int((labels == label).sum()) // 2)])
    return np.sort(np.concatenate(chosen))


def _losses(model: Normalized, seeded: SeededSet, seed: Seed) -> Float64[np.ndarray, "m"]:
    """Return the symmetric cross-entropy of each untrusted sample, cropped and flipped."""
    generator, parts = seed.torch(), list[Float64[np.ndarray, "_"]]()
    for part in chunks(seeded.untrusted):
        views = augment(tensor(np.array(seeded.images[part])), _META, generator)
        parts.append(symmetric_cross_entropies(classifier_logits(model, array(views)), seeded.labels[part]))
    return np.concatenate(parts)


def _after_learning_everything(model: Normalized, seeded: SeededSet, part: float, seed: Seed) -> Normalized:
    """Return a copy of the model whose last blocks have learnt all labels for one pass."""
    learnt = copy.deepcopy(model)
    learnt.requires_grad_(False)
    for module in last_blocks(learnt.network):
        module.requires_grad_(True)
    rows = drawn(np.arange(seeded.untrusted), part, seed.child("rows"))
    fit(learnt, seeded.images, rows, cross_entropy(seeded.labels), _META, seed)
    return learnt


def last_blocks(network: nn.Module) -> list[nn.Module]:
    """Return the second half of a network's blocks, in the order of its children, and what follows them.

    Blocks are what its sequences and lists hold; without any, all of its children.
    """
    parts, blocks = list[nn.Module](), list[int]()
    for child in network.children():
        nested = isinstance(child, nn.Sequential | nn.ModuleList)
        some = [
            part
            for part in (child.children() if nested else (child,))
            if next(part.parameters(), None) is not None
        ]
        blocks += range(len(parts), len(parts) + len(some)) if nested else ()
        parts += some
    start = blocks[len(blocks) // 2] if blocks else len(parts) // 2
    return parts[start:] or [network]
