"""Stages of a run: declared as values, computed once, found again by a key that holds their version.

RUN/stages/<name>/             a finished stage: its files and a manifest.json, written last
RUN/stages/.<name>-<key>.part  a stage that is being computed, or that was killed and can resume
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from clipguard.errors import ClipguardError
from clipguard.runs.files import PART, read_json
from clipguard.runs.seal import described
from clipguard.types import Progress, StepProgress

if TYPE_CHECKING:
    from clipguard.runs.run_folder import RunFolder

FORMAT: Final = 3
"""Raise it when the meaning of stored files changes: run folders of another format are refused."""

MANIFEST: Final = "manifest.json"
CLOCK: Final = ".started"
_HASH_ON_READ: Final = 64 * 2**20
_SMALL: Final = 2**16
_RESUME: Final = "resume" + PART

Given = TypeVar("Given")
"""All that a stage is computed from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedStage:
    """A finished stage.

    Attributes:
        path: the folder with its files.
        key: what later stages name among their inputs.
        seconds: time spent computing it, killed attempts included up to the last file they wrote.
        cached: whether it was there already: what resumes can be checked by it, and nothing else asks.
    """

    path: Path
    key: str
    seconds: float
    cached: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribedStage:
    """A stage and what it is computed from; the attributes are those of `Stage`, with their values."""

    name: str
    version: int
    config: Mapping[str, Any]
    inputs: Sequence[str]
    threaded: bool = False


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[Given]):
    """What is computed once, declared as a value.

    Attributes:
        name: folder name below `stages/`; an older stage of this name is replaced.
        version: of the code that computes it. Raise it with every change of its results: the key holds it,
            so that a changed algorithm never meets an old result.
        title: what it does, in words, for progress and the page.
        config: all settings that change the result, as JSON values.
        inputs: keys of stages, or hashes of values, that it reads.
        compute: fills the folder it is given, see `RunFolder.stage`; it says (done, total) as it goes on.
        threaded: its result depends on the number of threads, which the key then holds.
    """

    name: str
    version: int
    title: str
    config: Callable[[Given], Mapping[str, Any]]
    inputs: Callable[[Given], Sequence[str]]
    compute: Callable[[Given, Path, StepProgress], None]
    threaded: bool = False

    def run(self, folder: "RunFolder", given: Given, progress: Progress) -> FinishedStage:
        """Return the finished stage, computed now unless the run folder has it."""
        described = self.described(given)
        return folder.stage(described, lambda part: self.compute(given, part, partial(progress, self.title)))

    def described(self, given: Given) -> "DescribedStage":
        """Return all that decides its result."""
        return DescribedStage(
            name=self.name,
            version=self.version,
            config=dict(self.config(given)),
            inputs=list(self.inputs(given)),
            threaded=self.threaded,
        )


def stage_key(description: Mapping[str, Any]) -> str:
    """Return the key of a stage: the hash of its name, version, settings, inputs, threads and GPU."""
    text = json.dumps([FORMAT, description], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def finished_stage(folder: Path, key: str | None) -> FinishedStage | None:
    """Return the stage in `folder` if it is whole (and has `key`), else None.

    Sizes are always compared; hashes where they cost milliseconds, of small files and of stages up to 64 MiB.
    A torn write never gets a manifest, so hashing 10 GB of images at each start would guard only against an
    ageing disk.
    """
    try:
        manifest = read_json(folder / MANIFEST)
        files = {folder / name: entry for name, entry in manifest["files"].items()}
        stage = FinishedStage(
            path=folder, key=manifest["key"], seconds=float(manifest["seconds"]), cached=True
        )
        small = sum(entry["bytes"] for entry in files.values()) <= _HASH_ON_READ
        whole = all(_matches(file, entry, small) for file, entry in files.items())
    except (ClipguardError, OSError, LookupError, TypeError, AttributeError, ValueError):
        return None
    return stage if whole and key in (None, stage.key) else None


def _matches(file: Path, entry: Mapping[str, Any], by_hash: bool) -> bool:
    size, digest = entry["bytes"], entry["sha256"]
    by_hash = by_hash or size <= _SMALL
    return file.stat().st_size == size and (not by_hash or described(file)["sha256"] == digest)


def resume_folder(stage: Path) -> Path:
    """Return the folder, below a stage's, of what lets a killed attempt resume; it goes when all is done."""
    folder = stage / _RESUME
    folder.mkdir(exist_ok=True)
    return folder


def is_result(path: Path) -> bool:
    """Return whether a path below a stage's folder is no leftover and no clock."""
    return path.name != CLOCK and not any(part.endswith(PART) for part in path.parts)


def sweep(part: Path) -> None:
    """Remove what a finished stage does not need."""
    (part / CLOCK).unlink(missing_ok=True)
    for leftover in sorted(part.rglob("*" + PART), reverse=True):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)


def seconds_so_far(part: Path) -> float:
    """Return the time earlier attempts spent: a killed process cannot note it, its last file's date can."""
    try:
        before = float((part / CLOCK).read_text())
        started = (part / CLOCK).stat().st_mtime
        return before + max(file.stat().st_mtime for file in part.rglob("*")) - started
    except (OSError, ValueError):
        return 0.0


def replace_folder(part: Path, final: Path) -> None:
    """Rename `part` to `final`; a kill between the two renames leaves `part` whole, to be found next time."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    part.rename(final)
    sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Bring the entries of a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
