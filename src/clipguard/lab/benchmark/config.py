"""What is compared: a TOML file to data sets x attacks x rates x guides x nets x seeds, and the defences."""

import math
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from itertools import product
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Final, get_type_hints

from msgspec import Meta

from clipguard.compute.recipes import Recipe
from clipguard.data.columns import NO_COLUMNS, Columns
from clipguard.defenses import Defense, defense_factory, foreign_defense
from clipguard.errors import ClipguardError, reason_of
from clipguard.lab.attacks import attack_named, refuse_general
from clipguard.lab.benchmark.goals import REFERENCE_ROW, UNDEFENDED_ROW
from clipguard.lab.benchmark.reading import read_as
from clipguard.pipeline.config import DefenseConfig
from clipguard.safety.limits import read_bounded

BENCHMARK_RECIPE: Final = Recipe(epochs=25, lr=0.05, crop=0.0)
"""Flips but no crops: the usual zero-padded crops of 4 pixels mostly cut off a 3x3 patch in the corner.
BadNets then does not succeed in 25 epochs."""

TOML_BYTES: Final = 1 << 16
TOML_DOTS: Final = 1000

NAMED_LISTS: Final = ("data", "attacks", "guides", "nets", "defenses")
"""Lists of tables, in which a text stands for a table that has only a name."""

Rate = Annotated[float, Meta(gt=0, lt=1)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Pixels = Annotated[int, Meta(ge=1)]
AnySeed = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
"""Of 64 bits, as tables hold it."""
NOT_EMPTY: Final = Meta(min_length=1)

FAILED: Final = ".failed"
"""Ends the name of the file that says why a row could not be computed."""

UNTOUCHED: Final = "none"
"""The attack that changes nothing, at whatever rate."""
ALWAYS: Final = (UNDEFENDED_ROW, "retrain", "finetune")
"""Defences that every benchmark has, beside the clean-trained reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataChoice:
    """A training set and a test set.

    Attributes:
        name: of a data set that is known by name, or a label for the two files.
        train: a source as for `scan`, relative to the file's folder; None looks the name up.
        test: likewise.
        train_rows: first and one past the last row; None takes all.
        test_rows: likewise.
        clean_rows: further rows of `train`, which stay as they are: known clean samples for defences that
            need any.
        size: height and width; None takes the commonest of the training images.
        imbalance: how often the first class is the last one's size; the classes between fall exponentially.
        classes: names that the guide can read, in the order of the labels; none takes the source's own.
        columns: which hold images and labels, where the names are not the usual ones, and groups of samples
            that no cross-validation may tear apart.
    """

    name: str
    train: str | None = None
    test: str | None = None
    train_rows: tuple[int, int] | None = None
    test_rows: tuple[int, int] | None = None
    clean_rows: tuple[int, int] | None = None
    size: tuple[Pixels, Pixels] | None = None
    imbalance: Annotated[float, Meta(ge=1, le=1e6)] = 1.0
    classes: tuple[str, ...] = ()
    columns: Columns = NO_COLUMNS

    def __post_init__(self) -> None:
        if (self.train is None) != (self.test is None):
            raise ValueError(f"{self.name} has only one of train and test: give both or none")
        if self.columns != NO_COLUMNS and self.train is None:
            raise ValueError(f"{self.name} is known by name, with its columns: leave columns out")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackChoice:
    """An attack by name.

    Attributes:
        name: as for `attack`.
        rate: replaces the benchmark's rates.
        target: replaces the benchmark's class, for instance where a clean-label attack needs a larger one.
        seeds: replace the benchmark's.
        options: the attack's own settings.
        victim: changes of the recipe, for attacks that need longer to succeed.
    """

    name: str
    rate: Rate | None = None
    target: int | None = None
    seeds: Annotated[tuple[AnySeed, ...], NOT_EMPTY] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    victim: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuideChoice:
    """A guide by name, possibly made worse.

    Attributes:
        name: as for `scan --guide`; a `local-dir:` is relative to the file's folder.
        degrade: share of each image embedding that is replaced by noise: 0 leaves it, 1 leaves chance.
        templates: prompts; none takes the guide's usual ones.
        logit_scale: use the guide's own scale.
    """

    name: str
    degrade: Fraction = 0.0
    templates: tuple[str, ...] = ()
    logit_scale: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class NetChoice:
    """The victim's architecture.

    Attributes:
        name: as for `defend --architecture`.
        weights: safetensors of the same net of timm's, relative to the file's folder. Every training starts
            from them, but for the head: transfer. None trains from scratch.
        victim: changes of the recipe, for nets that need another.
    """

    name: str
    weights: str | None = None
    victim: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DefenseChoice:
    """A defence by name or `package.module:factory`; `label` names its rows, `options` are its own."""

    name: str
    label: str = ""
    options: dict[str, Any] = field(default_factory=dict)


_COMMON = DataChoice(name="cifar10", train_rows=(0, 12_000), test_rows=(0, 10_000))


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchConfig:
    """All of a benchmark; what the file leaves out is the common protocol.

    Attributes:
        data: the data sets.
        attacks: the attacks, `none` for the data as they are.
        rates: shares of all samples that are poisoned.
        target: class that the backdoor leads to.
        guides: given to the defences.
        nets: architectures of the victim.
        seeds: of attack, victim and defence.
        defenses: beside none, reference, retrain and finetune, which are always there.
        victim: how the victim is trained.
        reference_seeds: of the trainings without poison, whose mean all seeds are held against.
        defense_config: clipguard's settings, also for the controls that build on its scan. A defence's own
            options may change them further.
    """

    data: Annotated[tuple[DataChoice, ...], NOT_EMPTY] = (_COMMON,)
    attacks: Annotated[tuple[AttackChoice, ...], NOT_EMPTY] = (AttackChoice(name="badnets"),)
    rates: Annotated[tuple[Rate, ...], NOT_EMPTY] = (0.05,)
    target: int = 0
    guides: Annotated[tuple[GuideChoice, ...], NOT_EMPTY] = (GuideChoice(name="mini"),)
    nets: Annotated[tuple[NetChoice, ...], NOT_EMPTY] = (NetChoice(name="preactresnet18-16"),)
    seeds: Annotated[tuple[AnySeed, ...], NOT_EMPTY] = (0,)
    defenses: tuple[DefenseChoice, ...] = (DefenseChoice(name="clipguard"),)
    victim: Recipe = BENCHMARK_RECIPE
    reference_seeds: Annotated[tuple[AnySeed, ...], NOT_EMPTY] = (0, 1, 2)
    defense_config: DefenseConfig = field(default_factory=DefenseConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One combination: what is the same for all its rows."""

    data: DataChoice
    attack: AttackChoice
    rate: float
    target: int
    guide: GuideChoice
    net: str
    weights: str | None
    recipe: Recipe
    seed: int


def read_config(path: Path) -> BenchConfig:
    """Return the benchmark in a TOML file, with the rows that are always there.

    Raises:
        ClipguardError: no TOML, an unknown key, a value of another type, or an empty or doubled list.
    """
    try:
        values = _toml(read_bounded(path, TOML_BYTES).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise ClipguardError(f"benchmark {path} cannot be read as TOML: {reason_of(error)}") from error
    return config_from(values, str(path))


def config_from(values: Mapping[str, Any], where: str) -> BenchConfig:
    """Return the benchmark that the keys of a file describe, with the rows that are always there.

    Raises:
        ClipguardError: an unknown key, a wrong type, or an empty or doubled list; `where` is named.
    """
    config = read_as(BenchConfig, _spelled_out(values), where, BenchConfig())
    names = {choice.name for choice in config.defenses}
    defenses = [*config.defenses, *(DefenseChoice(name=name) for name in ALWAYS if name not in names)]
    # The victim first: all other rows are held against it, by the name of its row.
    defenses.sort(key=lambda choice: choice.name != UNDEFENDED_ROW)
    config = replace(config, defenses=tuple(map(_labelled, defenses)))
    for fault in _faults(config):
        raise ClipguardError(f"{where}, {fault}")
    _check_attacks(config, where)
    _check_cells(config, where)
    for choice in config.defenses:
        defense_of(config, choice, f"{where}, key defenses, {choice.label}")
    return config


def _labelled(choice: DefenseChoice) -> DefenseChoice:
    has_own = choice.label and choice.name != UNDEFENDED_ROW
    return choice if has_own else replace(choice, label=choice.name)


def _toml(text: str) -> dict[str, Any]:
    for number, line in enumerate(text.splitlines(), 1):
        # The parser's time and memory grow with the square of a dotted key's length.
        if line.count(".") > TOML_DOTS:
            raise ValueError(f"line {number} has more than {TOML_DOTS} dots")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _spelled_out(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with a table for each text in a list of tables."""
    named = {
        axis: [{"name": entry} if isinstance(entry, str) else entry for entry in entries]
        for axis in NAMED_LISTS
        if isinstance(entries := values.get(axis), list)
    }
    return {**values, **named}


def file_stem(label: str) -> str:
    """Return the name of a row's file, without its ending."""
    return re.sub(r"[^a-zA-Z0-9.-]+", "-", label)


def _faults(config: BenchConfig) -> Iterator[str]:
    for axis in ("data", "attacks", "rates", "guides", "nets", "seeds", "reference_seeds"):
        entries = getattr(config, axis)
        for number, entry in enumerate(entries):
            if entry in entries[:number]:
                yield f"key {axis}: the list holds {entry!r} twice: remove one"
    yield from _faults_of_labels([REFERENCE_ROW, *(choice.label for choice in config.defenses)])
    if config.defense_config.seed != DefenseConfig().seed:
        yield "key defense_config: the seed is each cell's: remove it"
    if config.defense_config.by != DefenseConfig().by:
        yield "key defense_config: retraining is a row of its own: remove the key by"


def _faults_of_labels(labels: list[str]) -> Iterator[str]:
    by_file = defaultdict[str, list[str]](list)
    for label in labels:
        by_file[file_stem(label)].append(label)
    for name, alike in by_file.items():
        if len(alike) > 1:
            words = " and ".join(map(repr, dict.fromkeys(alike))) + " in one file" * (len(set(alike)) > 1)
            yield f"key defenses: two rows would be {words}: give each a label"
        if name.endswith(FAILED):
            yield f"key defenses: {alike[0]!r} ends as the files of failed rows do: give another label"


def _check_attacks(config: BenchConfig, origin: str) -> None:
    for attack in config.attacks:
        try:
            refuse_general(attack.options)
            target = config.target if attack.target is None else attack.target
            attack_named(attack.name, target=target, **attack.options)
        except (ClipguardError, TypeError) as error:
            raise ClipguardError(f"{origin}, key attacks: {error}") from error
    for net, attack in product(config.nets, config.attacks):
        where = f"{origin}, net {net.name}, attack {attack.name}"
        recipe = recipe_of(config, net, attack, where)
        if recipe.epochs < 1 or recipe.batch_size < 1 or not 0 < recipe.lr < math.inf:
            raise ClipguardError(
                f"{where}: epochs, batch_size and lr of victim must be positive: correct them"
            )


def _check_cells(config: BenchConfig, origin: str) -> None:
    """Refuse a cell that is asked for twice, in whatever words: it would count twice in every mean."""
    earlier = set[str]()
    for cell in cells(config):
        if (text := repr(cell)) in earlier:
            raise ClipguardError(
                f"{origin}, key attacks: attack {cell.attack.name!r} at rate {cell.rate:g} with seed "
                f"{cell.seed} is there twice: remove one entry, or one of its seeds"
            )
        earlier.add(text)


def defense_of(config: BenchConfig, choice: DefenseChoice, where: str = "defence") -> Defense:
    """Return the defence of a choice, its options read as a table where it is a dataclass.

    Raises:
        ClipguardError: no such defence, or it takes other options.
    """
    try:
        factory: Any = defense_factory(choice.name)
        if not (isinstance(factory, type) and is_dataclass(factory)):
            return foreign_defense(choice.name, choice.options)
    except ClipguardError as error:
        raise ClipguardError(f"{where}: {error}") from error
    # The common settings are the default of a field that takes them, whatever its name.
    hints = get_type_hints(factory)
    common = {name: config.defense_config for name, kind in hints.items() if kind is DefenseConfig}
    made: object = read_as(factory, choice.options, where, factory(**common) if common else None)
    if not isinstance(made, Defense):
        raise ClipguardError(f"{where}: {choice.name!r} has no method defend(case)")
    return made


def recipe_of(config: BenchConfig, net: NetChoice, attack: AttackChoice, where: str = "recipe") -> Recipe:
    """Return how a net is trained on an attack's data: what the attack asks for goes first.

    Raises:
        ClipguardError: an unknown key.
    """
    return read_as(Recipe, net.victim | attack.victim, where, config.victim)


def cells(config: BenchConfig) -> Iterator[Cell]:
    """Yield every combination once; those of one data set follow each other."""
    for data, net, attack, guide in product(config.data, config.nets, config.attacks, config.guides):
        rates = config.rates if attack.rate is None else (attack.rate,)
        if attack.name == UNTOUCHED:
            rates = rates[:1]
        seeds = config.seeds if attack.seeds is None else attack.seeds
        for seed, rate in product(seeds, rates):
            yield Cell(
                data=data,
                # What it replaces stands in the cell itself: a cell is the same however it was asked for.
                attack=AttackChoice(name=attack.name, options=attack.options),
                rate=rate,
                target=config.target if attack.target is None else attack.target,
                guide=guide,
                net=net.name,
                weights=net.weights,
                recipe=recipe_of(config, net, attack),
                seed=seed,
            )


_AXES = itemgetter(
    "data.name", "attack.name", ".rate", "guide.name", "guide.degrade", ".net", "recipe.epochs"
)


def variants(config: BenchConfig) -> Iterator[tuple[Cell, str]]:
    """Yield every cell with what tells it from those of the same data, attack, rate, guide, net and epochs.

    That is the text of the settings in which they differ, but for the seed; "" where there are none.
    """
    flat = [(cell, dict(_flat(asdict(cell)))) for cell in cells(config)]
    alike: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for _, settings in flat:
        alike[_AXES(settings)].append(settings)
    for cell, settings in flat:
        others = alike[_AXES(settings)]
        differ = (key for key in settings if any(other.get(key) != settings[key] for other in others))
        yield cell, ", ".join(f"{key.rsplit('.', 1)[1]} {settings[key]}" for key in differ if key != ".seed")


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, key)
        else:
            yield f"{prefix}.{key}", f"{value}"
