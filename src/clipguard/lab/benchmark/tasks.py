"""The rows of a cell as tasks, and all that a row's figures depend on, as JSON whose hash is its key."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, is_dataclass
from hashlib import sha256
from operator import methodcaller
from pathlib import Path
from typing import Any, Final

import msgspec

from clipguard.compute import classifiers
from clipguard.compute.device import arithmetic
from clipguard.errors import ClipguardError
from clipguard.lab.attacks import cache, parts_of
from clipguard.lab.benchmark.cells import CellRunner, attack_of
from clipguard.lab.benchmark.config import BenchConfig, Cell, defense_of
from clipguard.lab.benchmark.goals import REFERENCE_ROW, UNDEFENDED_ROW
from clipguard.lab.benchmark.results import Row
from clipguard.pipeline import stages

FORMAT: Final = 3
"""Raise it when a column gets another name or meaning."""
VERSION: Final = 1
"""Raise it when the benchmark computes a figure in another way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One row to compute: its label, the defence and its settings as JSON values."""

    label: str
    defense: str
    settings: dict[str, Any]
    compute: Callable[[CellRunner], Row]

    @property
    def defended(self) -> bool:
        """Whether a defence takes part."""
        return self.defense not in (UNDEFENDED_ROW, REFERENCE_ROW)


def tasks_of(config: BenchConfig) -> Iterator[Task]:
    """Yield the rows of every cell: the undefended victim first, then the clean-trained reference.

    Raises:
        ClipguardError: a defence has a setting that is no plain value.
    """
    for choice in config.defenses:
        if choice.name == UNDEFENDED_ROW:
            yield Task(label=choice.label, defense=choice.name, settings={}, compute=CellRunner.undefended)
            yield Task(
                label=REFERENCE_ROW,
                defense=REFERENCE_ROW,
                settings={"seeds": list(config.reference_seeds)},
                compute=CellRunner.reference,
            )
        else:
            made: Any = defense_of(config, choice)
            # A dataclass holds all its settings, defaults included. Of anything else, the options are known.
            settings = json_of(made if is_dataclass(made) else asdict(choice), f"defence {choice.label!r}")
            # A defence that computes otherwise with the same settings says so by its version.
            settings |= {"version": made.version} if getattr(made, "version", None) else {}
            compute = methodcaller("defended", made)
            yield Task(label=choice.label, defense=choice.name, settings=settings, compute=compute)


def row_settings(cell: Cell, task: Task) -> dict[str, Any]:
    """Return what a row is made by, as JSON values; machine and contents of files come on top."""
    attack = attack_of(cell)
    code = {
        "benchmark": VERSION,
        "attack cache": cache.version_of(attack),
        "classifier cache": classifiers.VERSION,
    }
    # A new version of a stage leaves the rows of the victim and of the reference as they are.
    if task.defended:
        code |= {f"stage {name}": version for name, version in stages.versions().items()}
        # Of attacks on images of one class, target recall was compared with nothing before.
        if any(getattr(part, "source", None) is not None for part in parts_of(attack)):
            code["target recall"] = 1
        # Victims that were trained without mirrored images were repaired with them before.
        if not cell.recipe.flip:
            code["mirroring"] = 1
    return {
        "format": FORMAT,
        "code": code,
        **arithmetic(),
        "cell": json_of(cell, "cell"),
        "attack": json_of(attack, f"attack {cell.attack.name}"),
        "row": {"label": task.label, "defense": task.defense, "settings": task.settings},
    }


def key_of(settings: dict[str, Any]) -> str:
    """Return the sha256 of settings as JSON with sorted keys."""
    return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def json_of(value: Any, where: str) -> Any:
    """Return settings as JSON values; of an attack that is not fitted, None stands where its state goes.

    Raises:
        ClipguardError: something else is among them, of which no stable text exists.
    """
    try:
        return msgspec.to_builtins(value, str_keys=True, enc_hook=_text_of)
    except TypeError as error:
        raise ClipguardError(
            f"{where}: {error} cannot be part of a row's key: use numbers, texts and lists"
        ) from error


def _text_of(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r:.50}")
