"""Dropping the caches of a run: what its stages hold. Published results stay, and the seal stays true."""

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from clipguard.errors import ClipguardError, fault_of
from clipguard.runs.files import PART, read_json, write_json
from clipguard.runs.run_folder import RunFolder
from clipguard.runs.samples_table import SAMPLES
from clipguard.runs.seal import described, sealed, unseal
from clipguard.runs.stage import MANIFEST

CLEANED: Final = "cleaned.json"
"""When the caches were dropped, and the hashes of the manifests of the stages that were there."""


class Cleaned(NamedTuple):
    """Bytes that were freed, the stages that are gone, and the published files that stay."""

    freed: int
    stages: list[str]
    kept: list[str]


def clean_run(path: Path | str) -> Cleaned:
    """Drop the stages of a run, finished and unfinished; running again computes them anew.

    Raises:
        ClipguardError: no run folder, a run without results, or another process works in it.
    """
    run = RunFolder.read(path)
    kept = [name for name in sealed(run.path) if "/" not in name and name not in (MANIFEST, CLEANED)]
    if SAMPLES not in kept:
        raise ClipguardError(
            f"run folder {run.path} has no results yet: finish the run, or delete the folder"
        )
    stages = run.path / "stages"
    # A folder that is being dropped is none of the run: a kill leaves it to the next `clean`.
    waste = run.path / f"stages{PART}"
    gone = {place.name: _manifest_of(place) for place in sorted(stages.glob("[!.]*")) if place.is_dir()}
    try:
        with run.publishing(CLEANED) as file:
            for name in gone:
                unseal(run.path, f"stages/{name}/{MANIFEST}")
            now = datetime.now(UTC).isoformat(timespec="seconds")
            earlier = cleaning_of(run.path)
            write_json(file, {"cleaned": now, "stages": {**(earlier.stages if earlier else {}), **gone}})
            freed = _dropped(waste)
            if stages.exists():
                stages.rename(waste)
                stages.mkdir()
            freed += _dropped(waste)
    except OSError as error:
        raise ClipguardError(f"run folder {run.path}: {fault_of(error)}") from error
    return Cleaned(freed, list(gone), kept)


class Cleaning(NamedTuple):
    """What `clean_run` has noted in a run: when it was, and the manifests of the stages that are gone."""

    at: str
    stages: dict[str, Any]

    def words(self, run: Path) -> str:
        """Return in words what was done to the run, and when."""
        return f"clean has dropped the caches of run folder {run} ({len(self.stages)} stages) at {self.at}"


def cleaning_of(path: Path) -> Cleaning | None:
    """Return what was dropped from a run, and when; None where nothing was.

    Raises:
        ClipguardError: the note of it cannot be read.
    """
    if not (path / CLEANED).is_file():
        return None
    value = read_json(path / CLEANED)
    at, stages = (value.get("cleaned"), value.get("stages")) if isinstance(value, dict) else (None, None)
    if not isinstance(at, str) or not isinstance(stages, dict):
        at, stages = "an unknown time", {}
    return Cleaning(at, stages)


def _manifest_of(stage: Path) -> dict[str, Any] | None:
    return described(stage / MANIFEST) if (stage / MANIFEST).is_file() else None


def _dropped(folder: Path) -> int:
    """Remove a folder and return how many bytes its files had."""
    size = sum(
        os.lstat(os.path.join(place, name)).st_size for place, _, names in os.walk(folder) for name in names
    )
    shutil.rmtree(folder, ignore_errors=True)
    return size
