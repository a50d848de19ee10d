"""One cell: its data, attack, victim and defences, each made when a row first needs it."""

import copy
import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from clipguard.compute.classifiers import ClassifierConfig, cached_classifier
from clipguard.compute.training import EpochHook
from clipguard.defenses import Case, Defense, Detected, Repaired
from clipguard.errors import ClipguardError
from clipguard.lab.attacks import Attack, attack_named, fit_attack, parts_of
from clipguard.lab.benchmark.config import UNTOUCHED, Cell, DataChoice
from clipguard.lab.benchmark.data_sets import clean_set, image_sets, sources
from clipguard.lab.benchmark.guides import BenchGuide, accuracy, guide_of
from clipguard.lab.benchmark.machine import forget_peak_memory, peak_memory
from clipguard.lab.benchmark.places import BenchmarkPaths
from clipguard.lab.benchmark.rates import (
    TriggeredTest,
    hits_of,
    mean_row,
    of_target,
    paired,
    rates_of,
    triggered_tests,
)
from clipguard.lab.benchmark.results import Row
from clipguard.lab.evaluation import detection, detection_by_scores
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.models.preprocessing import as_they_are, timm_preprocessing
from clipguard.models.pretrained import take_body
from clipguard.models.spec import ModelSpec, Normalized, build, loads_with_timm, weights_digest
from clipguard.runs.summary import METRICS
from clipguard.seeds import Seed, Stream
from clipguard.types import ImageSet


def cell_name(cell: Cell) -> str:
    """Return a readable name that no other cell has: it ends in a hash of all settings."""
    words = [cell.data.name, cell.attack.name, f"{cell.rate:g}", cell.guide.name, cell.net]
    if cell.guide.degrade:
        words[3] += f"-{cell.guide.degrade:g}"
    plain = "".join(c if c.isalnum() or c in ".+-" else "-" for c in "_".join([*words, f"s{cell.seed}"]))
    digest = sha256(json.dumps(asdict(cell), sort_keys=True).encode()).hexdigest()[:8]
    return f"{plain[:100]}-{digest}"


def attack_of(cell: Cell) -> Attack:
    """Return the attack, not fitted yet, with all its settings, defaults included.

    Raises:
        ClipguardError: there is no such attack, or it has no such option.
    """
    return attack_named(cell.attack.name, rate=cell.rate, target=cell.target, **cell.attack.options)


class LazyModel:
    """A classifier of one set. It refers to that set and to nothing else of its cell.

    A defence is given the method `copied`. From that it cannot come to the truth by accident, which the
    cell's runner holds. Code that means harm can: it runs in this process.
    """

    def __init__(self, data: ImageSet, config: ClassifierConfig, cache: Path, on_epoch: EpochHook) -> None:
        self.data, self.config, self.cache, self.on_epoch = data, config, cache, on_epoch
        self.copies = 0

    @functools.cached_property
    def trained(self) -> tuple[Normalized, float]:
        """The model itself, not to be changed, and the seconds of its training, also where a cache had it."""
        return cached_classifier(self.config, self.data, self.cache, on_epoch=self.on_epoch)

    @property
    def digest(self) -> str | None:
        """The hash of its weights; None where nothing has needed the model yet."""
        return weights_digest(self.trained[0]) if "trained" in vars(self) else None

    def copied(self) -> Normalized:
        """Return a copy, and count it. A defence may change its own: other rows are of the model as it is."""
        self.copies += 1
        return copy.deepcopy(self.trained[0])

    def trained_on(self, keep: Bool[np.ndarray, "n"]) -> tuple[Normalized, float]:
        """Return a model trained as this one, on some of the rows, and the seconds of its training."""
        return cached_classifier(self.config, self.data, self.cache, keep, self.on_epoch)


class CellRunner:
    """What the rows of one cell share."""

    def __init__(self, cell: Cell, paths: BenchmarkPaths, reference_seeds: Sequence[int]) -> None:
        self.cell, self.paths, self.reference_seeds = cell, paths, reference_seeds
        self.name = cell_name(cell)

    @functools.cached_property
    def sets(self) -> tuple[ImageSet, ImageSet]:
        """Training set before the attack, and test set."""
        return image_sets(self.cell.data, self.paths)[:2]

    @functools.cached_property
    def attack(self) -> Attack:
        """The fitted attack, from the cache or fitted now."""
        seed = Seed(self.cell.seed).child(Stream.ATTACK_FIT, self.cell.attack.name)
        cache = self.paths.cache / "attacks"
        return fit_attack(attack_of(self.cell), self.sets[0], seed, cache, self.paths.progress)

    @functools.cached_property
    def poisoned(self) -> tuple[ImageSet, PoisonTruth]:
        """The poisoned training set and the truth about it."""
        seed = Seed(self.cell.seed).child("attack", self.cell.attack.name)
        data, truth = self.attack.poison(self.sets[0], seed)
        if self.cell.attack.name != UNTOUCHED and not truth.poisoned.any():
            raise ClipguardError(f"{self.cell.rate:g} of {len(data)} images is none: give a higher rate")
        return data, truth

    @functools.cached_property
    def triggered_tests(self) -> tuple[TriggeredTest, ...]:
        """The test set with each trigger."""
        return triggered_tests(self.attack, self.sets[1])

    @functools.cached_property
    def victim(self) -> LazyModel:
        """The model trained on the poisoned set."""
        return self._model(self.poisoned[0], self.cell.seed, "train the victim")

    @functools.cached_property
    def victim_hits(self) -> Bool[np.ndarray, "t"]:
        """Which clean test images the victim gets right."""
        return hits_of(self.victim.trained[0], self.sets[1])

    @property
    def _target_tests(self) -> Bool[np.ndarray, "t"]:
        """Which test images are of the attack's class, or classes."""
        return of_target(self.sets[1].labels, self.triggered_tests)

    @functools.cached_property
    def guide(self) -> BenchGuide:
        """The guide."""
        return guide_of(self.cell.guide, self.paths.cache / "embeddings", self.paths.beside)

    @property
    def guide_pass_seconds(self) -> float:
        """What it takes to embed all images; 0 as long as nothing has been embedded."""
        return self.guide.clip.pace * len(self.poisoned[0])

    @functools.cached_property
    def guide_accuracy(self) -> float:
        """The share of the poisoned training images to which the guide gives their true label."""
        data, truth = self.poisoned
        return accuracy(self.guide, data, truth.original_labels)

    def undefended(self) -> Row:
        """Return the row of the victim."""
        # A trigger that changes nothing is refused before the victim is trained.
        _ = self.triggered_tests
        model, seconds = self.victim.trained
        return {**self._rates(model), "victim": self.victim.digest, "seconds": {"victim": seconds}}

    def reference(self) -> Row:
        """Return the row of the same recipe without the poison, tested with this cell's triggers."""
        rows = list[Row]()
        for seed in self.reference_seeds:
            model, seconds = self._model(self.sets[0], seed, "train the clean reference").trained
            rows.append({**self._rates(model), "seconds": {"reference": seconds}})
        return mean_row(rows)

    def defended(self, defense: Defense) -> Row:
        """Return the row of a defence."""
        # Before the defence, so that every image is remembered: a defence may embed them in smaller portions.
        guide_accuracy, copies_before = self.guide_accuracy, self.victim.copies
        case = self.case()
        # Neither the guide's pass above nor the tests below are the defence's.
        forget_peak_memory()
        result: object = defense.defend(case)
        peak = peak_memory()
        if not isinstance(result, Repaired | Detected):
            raise ClipguardError(
                f"the defence returned {type(result).__name__}: return a Repaired or a Detected"
            )
        row: Row = {
            **(self._judged(result.model) if isinstance(result, Repaired) else self._unjudged()),
            "seconds": _numbers(result.seconds, "seconds"),
            "notes": _numbers(result.notes, "notes"),
            "victim": self.victim.digest if self.victim.copies > copies_before else None,
            "guide_accuracy": guide_accuracy,
            "guide_pass_seconds": self.guide_pass_seconds,
            "peak_memory_mb": peak,
        }
        if isinstance(result, Detected):
            row["detection"] = detection_by_scores(result.scores, result.flagged, self.poisoned[1])
        elif result.entropy_map is not None and result.partition is not None:
            row["detection"] = detection(result.entropy_map, result.partition, *self.poisoned)
        return row

    def case(self) -> Case:
        """Return what a defence is given: nothing in it refers to the truth."""
        return Case(
            data=self.poisoned[0],
            train_victim=self.victim.copied,
            train_on=self.victim.trained_on,
            spec=self.victim.config.spec,
            recipe=self.cell.recipe,
            guide=self.guide,
            seed=self.cell.seed,
            run_dir=self.paths.run / "defences" / self.name,
            clean=clean_set(self.cell.data, self.paths),
            guide_pass_seconds=self.guide_pass_seconds,
            progress=self.paths.progress,
        )

    def _model(self, data: ImageSet, seed: int, step: str) -> LazyModel:
        recipe, progress = self.cell.recipe, self.paths.progress
        h, w = data.images.shape[1:3]
        k = len(data.class_names)
        config = ClassifierConfig(
            spec=_spec(self.cell.net, k, (h, w)),
            recipe=recipe,
            seed=Seed(seed).child("victim"),
            start=_start(self.cell, self.paths),
        )
        return LazyModel(data, config, self.paths.cache, lambda done: progress(step, done, recipe.epochs))

    def _judged(self, model: Normalized) -> Row:
        """Return the rates of a repaired model, image by image against the victim's."""
        hits = hits_of(model, self.sets[1])
        return {**self._rates(model), "paired": paired(self.victim_hits, hits, self._target_tests)}

    def _unjudged(self) -> Row:
        """Return what stands in place of rates where a defence repairs nothing."""
        return {**dict.fromkeys(metric.name for metric in METRICS), "attack_successes": None, **self._about()}

    def _rates(self, model: Normalized) -> Row:
        return {**rates_of(model, self.sets[1], self.triggered_tests), **self._about()}

    def _about(self) -> Row:
        data, truth = self.poisoned
        return {
            "train_n": len(data),
            "unreadable": image_sets(self.cell.data, self.paths)[2],
            "poisoned": int(np.sum(truth.poisoned)),
            "cover": int(np.sum(truth.cover)),
            "fingerprint": data.fingerprint,
        }


def preflight(cells: Sequence[Cell], paths: BenchmarkPaths, guided: bool) -> None:
    """Check that every cell can begin. A cell checks by itself what depends on its data, such as the rate.

    Args:
        cells: those to compute.
        paths: where data and guides are looked for.
        guided: whether any row needs the guide, which is then loaded.

    Raises:
        ClipguardError: data or guide that cannot be had, train and test of other classes, a target that is no
            class, an unknown mapping or architecture; with the name of what is wrong.
    """
    classes: dict[DataChoice, int] = {}
    for cell in cells:
        if cell.data not in classes:
            classes[cell.data] = len(sources(cell.data, paths)[0].class_names)
        _check_target(cell, classes[cell.data])
    for cell in {(cell.net, cell.weights, cell.data): cell for cell in cells}.values():
        model = build(_spec(cell.net, classes[cell.data], cell.data.size or (32, 32)), Seed(0))
        if (start := _start(cell, paths)) is not None:
            take_body(model, start, Seed(0))
    for guide in dict.fromkeys(cell.guide for cell in cells) if guided else ():
        _ = guide_of(guide, paths.cache / "embeddings", paths.beside).clip


def _spec(net: str, k: int, size: tuple[int, int]) -> ModelSpec:
    """Return the net for images of that size; one of timm's is given the colours that it knows."""
    known = timm_preprocessing(net) if loads_with_timm(net) else None
    if known is None:
        return ModelSpec.sized(architecture=net, num_classes=k, input_size=size)
    return ModelSpec(architecture=net, num_classes=k, preprocessing=as_they_are(replace(known, size=size)))


def _start(cell: Cell, paths: BenchmarkPaths) -> Path | None:
    return None if cell.weights is None else paths.beside / Path(cell.weights).expanduser()


def _check_target(cell: Cell, k: int) -> None:
    for part in parts_of(attack_of(cell)):
        # All-to-all has other target labels than the target.
        labels = part.target_labels(np.arange(k), k)
        if labels is not None and not np.isin(labels, np.arange(k)).all():
            raise ClipguardError(
                f"target {part.target} of {cell.attack.name} is no class of {cell.data.name}: choose one of "
                f"0 to {k - 1}"
            )


def _numbers(figures: Mapping[str, Any], what: str) -> dict[str, float | int]:
    """Return a defence's own figures as plain numbers, which is all that a table's columns hold.

    Raises:
        ClipguardError: one is no finite number.
    """
    plain: dict[str, float | int] = {}
    for name, value in figures.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ClipguardError(f"the defence's {what} {str(name)!r} is {value!r:.50}: give a finite number")
        plain[str(name)] = int(number) if isinstance(value, int | np.integer) else number
    return plain
