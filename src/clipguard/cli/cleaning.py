"""`clean`: the caches of a run are dropped, its results stay."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipguard.cli.outcome import Outcome
from clipguard.errors import one_line

if TYPE_CHECKING:
    from rich.console import Console


def run_clean(run: Path, as_json: bool) -> Outcome:
    """Return how many bytes were freed, and what stays.

    Raises:
        ClipguardError: no run folder, or one without results.
    """
    from clipguard.runs import SEAL, described
    from clipguard.runs.cleaning import clean_run

    cleaned = clean_run(run)
    value = {
        "run": str(run),
        "freed_bytes": cleaned.freed,
        "stages": cleaned.stages,
        "kept": cleaned.kept,
        "seal": described(run / SEAL)["sha256"],
    }
    return Outcome(value=value, show=partial(_show, value), as_json=as_json)


def _show(value: dict[str, Any], console: "Console") -> None:
    for line in (
        f"{value['freed_bytes'] / 1e6:,.1f} MB freed: the caches of {len(value['stages'])} stages",
        f"kept: {', '.join(value['kept'])}",
        f"seal: {value['seal']} (of the cleaned run)",
    ):
        console.print(one_line(line), soft_wrap=True, markup=False, emoji=False)
