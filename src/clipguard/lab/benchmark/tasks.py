"""The rows of a cell as tasks, and all that a row's figures depend on, as JSON whose hash is its key."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import torch

from clipguard.defenses import Defense
from clipguard.errors import ClipguardError
from clipguard.lab.benchmark.cells import CellRunner, attack_of
from clipguard.lab.benchmark.config import BenchConfig, Cell, defense_of, settings_of
from clipguard.lab.benchmark.goals import REFERENCE_ROW, UNDEFENDED_ROW
from clipguard.lab.benchmark.results import Row

FORMAT: Final = 2
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
                settings={"seed": config.reference_seed},
                compute=CellRunner.reference,
            )
        else:
            made: Any = defense_of(config, choice)
            # A dataclass holds all its settings, defaults included. Of anything else, the options are known.
            settings = json_of(made if is_dataclass(made) else asdict(choice), f"defence {choice.label!r}")
            yield Task(label=choice.label, defense=choice.name, settings=settings, compute=_defended(made))


def _defended(defense: Defense) -> Callable[[CellRunner], Row]:
    return lambda runner: runner.defended(defense)


def row_settings(cell: Cell, task: Task) -> dict[str, Any]:
    """Return all that a row's figures depend on, but for the machine, as JSON values."""
    return {
        "format": FORMAT,
        "code": code_versions(defended=task.defended),
        "threads": torch.get_num_threads(),
        "cell": json_of(settings_of(cell), "cell"),
        "attack": json_of(attack_of(cell), f"attack {cell.attack.name}"),
        "row": {"label": task.label, "defense": task.defense, "settings": task.settings},
    }


def key_of(settings: dict[str, Any]) -> str:
    """Return the sha256 of settings as JSON with sorted keys."""
    return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def code_versions(*, defended: bool) -> dict[str, int]:
    """Return the versions of the code that makes a row; those of the pipeline's stages where one is defended.

    A new version of a stage leaves the rows of the victim and of the reference as they are.
    """
    from clipguard.compute import classifiers
    from clipguard.lab.attacks import cache
    from clipguard.pipeline import stages

    versions = {"benchmark": VERSION, "attack cache": cache.VERSION, "classifier cache": classifiers.VERSION}
    if defended:
        versions |= {f"stage {name}": version for name, version in stages.versions().items()}
    return versions


def json_of(value: Any, where: str) -> Any:
    """Return settings as JSON values: a dataclass as its name and its fields, None left out.

    An attack that is not fitted has None where its fitted state goes, so that no state is part of it.

    Raises:
        ClipguardError: something else is among them, of which no stable text exists.
    """
    if is_dataclass(value) and not isinstance(value, type):
        inner = {field.name: getattr(value, field.name) for field in fields(value)}
        return {"class": type(value).__name__, **json_of(inner, where)}
    if isinstance(value, dict):
        known = {str(key): entry for key, entry in value.items() if entry is not None}
        return {key: json_of(entry, f"{where}, {key}") for key, entry in known.items()}
    if isinstance(value, list | tuple):
        return [json_of(entry, where) for entry in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Path):
        return str(value)
    raise ClipguardError(
        f"{where}: {value!r:.50} cannot be part of a row's key: use numbers, texts and lists"
    )
