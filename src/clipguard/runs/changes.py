"""Which settings differ from those of a used run folder: it is told before results are replaced."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from clipguard.errors import one_line
from clipguard.runs.run_folder import RunFolder
from clipguard.runs.samples_table import SAMPLES
from clipguard.runs.seal import sealed
from clipguard.runs.stage import MANIFEST

LISTED: Final = 6
"""How many differences are named."""

_COMPARED: Final = ("seed", "config", "device")
"""Parts of the manifest that decide results."""


def changed_settings(run: RunFolder) -> str | None:
    """Return in words how the settings of an opened run folder differ from those of its results, if at all.

    Nothing is said of a folder without results.
    """
    if not (run.path / MANIFEST).exists() or SAMPLES not in sealed(run.path):
        return None
    before = RunFolder.read(run.path).manifest
    changes = [
        change
        for name in _COMPARED
        for change in _differences(name, before.get(name), run.manifest.get(name))
    ]
    if not changes:
        return None
    changes = list(dict.fromkeys(changes))
    more = f" and {len(changes) - LISTED} more" if len(changes) > LISTED else ""
    return one_line(
        f"run folder {run.path} holds results of other settings ({'; '.join(changes[:LISTED])}{more}): they "
        "are replaced; give another folder to keep both"
    )


def _differences(name: str, before: Any, now: Any) -> Iterator[str]:
    """Return the settings that differ, with both values, deepest first named by its path."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*before, *now]):
            inner = str(key) if name in ("config", "defense") else f"{name}.{key}"
            yield from _differences(inner, before.get(key), now.get(key))
    elif before != now:
        yield f"{name} {_short(before)} -> {_short(now)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
