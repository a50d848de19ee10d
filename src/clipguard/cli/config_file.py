"""`--config FILE`: options in TOML, by command. What is typed goes before; unknown names are refused."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from cyclopts.config import Dict

from clipguard.errors import ClipguardError, reason_of

OPTION: Final = "--config"
COMMANDS: Final = ("scan", "defend")
LARGEST: Final = 2**20
"""Bytes of such a file."""


def config_path(arguments: Sequence[str]) -> Path | None:
    """Return the file that the arguments name, the last one if there are several."""
    path = None
    for place, text in enumerate(arguments):
        if text == "--":
            break
        if text.startswith(f"{OPTION}="):
            path = Path(text.removeprefix(f"{OPTION}="))
        elif text == OPTION and place + 1 < len(arguments):
            path = Path(arguments[place + 1])
    return path


def configured(path: Path | None) -> list[Dict]:
    """Return what the parser reads options from, beside what is typed.

    It is never looked for: a file that comes with the data must not say what counts as a failure.

    Raises:
        ClipguardError: the file is missing, is no TOML, or has other tables than those of `COMMANDS`.
    """
    if path is None:
        return []
    tables = _tables(path)
    shared, own = tables.get("scan", {}), tables.get("defend", {})
    both = {**shared, **own, "limits": {**shared.get("limits", {}), **own.get("limits", {})}}
    if not both["limits"]:
        del both["limits"]
    return [Dict({"scan": shared, "defend": both}, source=str(path))]


def _tables(path: Path) -> dict[str, dict[str, Any]]:
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise ClipguardError(f"{OPTION} {path} is larger than 1 MiB: give a file of options")
        tables = tomllib.loads(text.decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ClipguardError(f"{OPTION} {path} cannot be read as TOML: {reason_of(error)}") from error
    for name, table in tables.items():
        if name not in COMMANDS or not isinstance(table, dict):
            raise ClipguardError(
                f"{OPTION} {path}: {name!r} is no table of options: give [scan] or [defend] above the options"
            )
        if "config" in table:
            raise ClipguardError(f"{OPTION} {path}: a file of options names no other one: leave config out")
        if not isinstance(table.get("limits", {}), dict):
            raise ClipguardError(f"{OPTION} {path}: limits of [{name}] is no table: write [{name}.limits]")
    return tables
