"""One cell at work: its data, attack, victim and defences, each made when a row first needs it."""

import copy
import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from clipguard.compute.classifiers import ClassifierConfig, cached_classifier
from clipguard.data import ImageSource
from clipguard.data.catalog import NAMED, Part, open_named
from clipguard.data.decode import common_size, read_images
from clipguard.defenses import Case, Defense, Repaired
from clipguard.errors import ClipguardError
from clipguard.lab.attacks import Attack, attack_named, fit_attack
from clipguard.lab.benchmark.config import UNTOUCHED, Cell, DataChoice, settings_of
from clipguard.lab.benchmark.guides import BenchGuide, accuracy, guide_of
from clipguard.lab.benchmark.judging import TriggeredTest, judged, triggered_tests
from clipguard.lab.benchmark.longtail import long_tailed
from clipguard.lab.evaluation import detection
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.models.spec import ModelSpec, Normalized, weights_digest
from clipguard.seeds import Seed, Stream
from clipguard.types import ImageSet

Row = dict[str, Any]
Report = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkPaths:
    """Where a benchmark works.

    Attributes:
        run: the benchmark's own folder.
        cache: victims, fitted attacks and embeddings, shared by all benchmarks.
        data: folder of the data sets that are known by name.
        beside: folder of the TOML file, from which relative paths start.
        download: fetch data sets that are not there.
        report: called as work goes on.
    """

    run: Path
    cache: Path
    data: Path
    beside: Path
    download: bool = False
    report: Report | None = field(default=None, compare=False)


def cell_name(cell: Cell) -> str:
    """Return a readable name that no other cell has: it ends in a hash of all settings."""
    words = [cell.data.name, cell.attack.name, f"{cell.rate:g}", cell.guide.name, cell.net.name]
    if cell.guide.degrade:
        words[3] += f"-{cell.guide.degrade:g}"
    plain = "".join(c if c.isalnum() or c in ".+-" else "-" for c in "_".join([*words, f"s{cell.seed}"]))
    digest = sha256(json.dumps(settings_of(cell), sort_keys=True).encode()).hexdigest()[:8]
    return f"{plain[:100]}-{digest}"


def attack_of(cell: Cell) -> Attack:
    """Return the attack with all its settings, those that nobody chose included.

    Raises:
        ClipguardError: there is no such attack, or it has no such option.
    """
    return attack_named(cell.attack.name, rate=cell.rate, target=cell.target, **cell.attack.options)


def sources(choice: DataChoice, lab: BenchmarkPaths) -> tuple[ImageSource, ImageSource]:
    """Return training and test set of a choice, not yet decoded.

    Raises:
        ClipguardError: they cannot be had, or name other classes than each other.
    """
    train, test = (_source(choice, part, lab) for part in ("train", "test"))
    if train.class_names != test.class_names:
        raise ClipguardError(
            f"data set {choice.name}: {test.location} names other classes than {train.location}: give both "
            "the same, or key classes"
        )
    return train, test


@functools.lru_cache(maxsize=2)
def image_sets(choice: DataChoice, lab: BenchmarkPaths) -> tuple[ImageSet, ImageSet, int]:
    """Return decoded training and test set of a choice, and how many images could not be read.

    Raises:
        ClipguardError: they cannot be had, or name other classes than each other.
    """
    train, test = sources(choice, lab)
    size = choice.size or common_size(train).common
    (learnt, bad), (held_out, worse) = read_images(train, size), read_images(test, size)
    if choice.imbalance > 1:
        learnt = long_tailed(learnt, choice.imbalance, Seed(0).child("long tail"))
    return learnt, held_out, len(bad) + len(worse)


def _source(choice: DataChoice, part: Part, lab: BenchmarkPaths) -> ImageSource:
    path = choice.train if part == "train" else choice.test
    rows = choice.train_rows if part == "train" else choice.test_rows
    if path is None:
        return open_named(
            choice.name, part, lab.data, download=lab.download, rows=rows, classes=choice.classes or None
        )
    return ImageSource.open(
        lab.beside / Path(path).expanduser(),
        rows=rows,
        classes=choice.classes or (NAMED[choice.name].names if choice.name in NAMED else None),
    )


class CellRunner:
    """What the rows of one cell share."""

    def __init__(self, cell: Cell, lab: BenchmarkPaths, reference_seed: int) -> None:
        self.cell, self.lab, self.reference_seed = cell, lab, reference_seed
        self.name = cell_name(cell)
        self.built_on_victim = False

    @functools.cached_property
    def sets(self) -> tuple[ImageSet, ImageSet]:
        """Training set before the attack, and test set."""
        return image_sets(self.cell.data, self.lab)[:2]

    @functools.cached_property
    def attack(self) -> Attack:
        """The attack, fitted to the data or read from the cache if it learns."""
        seed = Seed(self.cell.seed).child(Stream.ATTACK_FIT, self.cell.attack.name)
        cache = self.lab.cache / "attacks"
        return fit_attack(attack_of(self.cell), self.sets[0], seed, cache, self.lab.report)

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
    def victim(self) -> tuple[Normalized, float]:
        """The model trained on the poisoned set, and the seconds that took."""
        return self._trained(self.poisoned[0], self.cell.seed, "victim")

    @property
    def victim_digest(self) -> str | None:
        """The hash of the victim's weights; None where no row has asked for the victim."""
        return weights_digest(self.victim[0]) if "victim" in vars(self) else None

    def _asked_for(self) -> Normalized:
        """Return a copy of the victim for a defence, and note that this one builds on it."""
        self.built_on_victim = True
        # The other rows are of the victim as it is, whatever a defence does to what it is given.
        return copy.deepcopy(self.victim[0])

    @functools.cached_property
    def guide(self) -> BenchGuide:
        """The guide, which knows the images that a defence will show it."""
        made = guide_of(self.cell.guide, self.lab.cache / "embeddings", self.lab.beside)
        made.foresee(self.poisoned[0])
        return made

    @functools.cached_property
    def guide_accuracy(self) -> float:
        """How many of the training images the guide reads rightly, as poisoned, against the true labels."""
        data, truth = self.poisoned
        return accuracy(self.guide, data, truth.original_labels)

    def undefended(self) -> Row:
        """Return the row of the victim."""
        # A trigger that changes nothing is told before the victim is trained.
        _ = self.triggered_tests
        model, seconds = self.victim
        return {**self._judged(model), "victim": self.victim_digest, "seconds": {"victim": seconds}}

    def oracle(self) -> Row:
        """Return the row of the same recipe without the poison, judged with this cell's triggers."""
        model, seconds = self._trained(self.sets[0], self.reference_seed, "oracle")
        return {**self._judged(model), "seconds": {"oracle": seconds}}

    def defended(self, defense: Defense) -> Row:
        """Return the row of a defence."""
        self.built_on_victim = False
        cured: object = defense.defend(self.case())
        if not isinstance(cured, Repaired):
            raise ClipguardError(f"the defence returned {type(cured).__name__}: return a Repaired")
        told: Row = {
            **self._judged(cured.model),
            "seconds": _numbers(cured.seconds, "seconds"),
            "notes": _numbers(cured.notes, "notes"),
        }
        if cured.entropy is not None and cured.split is not None:
            told["detection"] = detection(cured.entropy, cured.split, *self.poisoned)
        told["victim"] = self.victim_digest if self.built_on_victim else None
        told["guide_accuracy"] = self.guide_accuracy
        return {**told, "guide_pass_seconds": self.guide.pass_seconds(len(self.poisoned[0]))}

    def case(self) -> Case:
        """Return what a defence is given: nothing of the truth."""
        return Case(
            data=self.poisoned[0],
            train_victim=self._asked_for,
            spec=self._spec(self.poisoned[0]),
            recipe=self.cell.recipe,
            guide=self.guide,
            seed=self.cell.seed,
            run_dir=self.lab.run / "defences" / self.name,
            cache=self.lab.cache,
            report=self.lab.report,
        )

    def teller(self, stage: str) -> Callable[[int, int], None]:
        """Return a progress function of one stage."""
        return functools.partial(self.lab.report or _quiet, stage)

    def _trained(self, data: ImageSet, seed: int, stage: str) -> tuple[Normalized, float]:
        recipe = self.cell.recipe
        schooling = ClassifierConfig(spec=self._spec(data), recipe=recipe, seed=Seed(seed).child("victim"))
        tell = self.teller(stage)
        return cached_classifier(
            schooling, data, self.lab.cache, on_epoch=lambda done: tell(done, recipe.epochs)
        )

    def _spec(self, data: ImageSet) -> ModelSpec:
        h, w = data.images.shape[1:3]
        net = self.cell.net.name
        return ModelSpec(architecture=net, num_classes=len(data.class_names), input_size=(h, w))

    def _judged(self, model: Normalized) -> Row:
        truth = self.poisoned[1]
        return {
            **judged(model, self.sets[1], self.triggered_tests),
            "train_n": len(self.poisoned[0]),
            "unreadable": image_sets(self.cell.data, self.lab)[2],
            "poisoned": int(np.sum(truth.poisoned)),
            "cover": int(np.sum(truth.cover)),
            "fingerprint": self.poisoned[0].fingerprint,
            "attack_settings": repr(attack_of(self.cell)),
        }


def _numbers(told: Mapping[str, Any], what: str) -> dict[str, float | int]:
    """Return what a defence says of itself as plain numbers, which is all that a table's columns hold.

    Raises:
        ClipguardError: one is no finite number.
    """
    plain: dict[str, float | int] = {}
    for name, value in told.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ClipguardError(f"the defence's {what} {str(name)!r} is {value!r:.50}: give a finite number")
        plain[str(name)] = int(number) if isinstance(value, int | np.integer) else number
    return plain


def _quiet(stage: str, done: int, total: int) -> None:
    """Take progress that nobody wants to see."""
