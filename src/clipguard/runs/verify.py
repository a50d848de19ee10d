"""Whether a run folder still holds what was written: each file against seal and manifests. Reads only."""

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from clipguard.errors import ClipguardError
from clipguard.runs.files import PART, read_json
from clipguard.runs.locks import LOCK
from clipguard.runs.run_folder import RunFolder
from clipguard.runs.seal import SEAL, described, sealed
from clipguard.runs.stage import MANIFEST


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What became of one file; `added` is one that nobody recorded."""

    path: str
    status: Literal["ok", "changed", "missing", "added"]


def compared(name: str, file: Path, entry: object) -> Checked:
    """Return how `file` compares with its recorded size and sha256; with a damaged record, nothing agrees.

    Raises:
        ClipguardError: it is there and cannot be read.
    """
    recorded = entry if isinstance(entry, Mapping) else {}
    try:
        status = file.stat()
        regular = stat.S_ISREG(status.st_mode) and status.st_size == recorded.get("bytes")
        same = regular and described(file) == dict(recorded)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last for a NUL in its name
        return Checked(path=name, status="missing")
    except OSError as error:
        raise ClipguardError(f"{file} cannot be read: {error.strerror}: allow it and run again") from error
    return Checked(path=name, status="ok" if same else "changed")


def verify_run(path: Path | str) -> list[Checked]:
    """Return what became of each file of a run: manifest, what was published, every finished stage.

    Every hash is computed anew. The seal itself is proved by nothing in the folder: keep its hash elsewhere.
    What a killed process left unfinished is no part of the run.

    Raises:
        ClipguardError: no run folder, no seal, or files that cannot be read.
    """
    run = RunFolder.read(path).path
    files = sealed(run)
    if not files:
        raise ClipguardError(f"run folder {run} has no {SEAL}, or a damaged one: run again to write it")
    there = [name for name in sorted(_files(run)) if name not in (SEAL, LOCK)]
    recorded = dict(files)
    for name in there:
        if fnmatchcase(name, f"stages/*/{MANIFEST}") and name.count("/") == 2:
            recorded = _of_stage(run, name) | recorded
    checks = [compared(name, run / name, entry) for name, entry in recorded.items()]
    return checks + [Checked(path=name, status="added") for name in there if name not in recorded]


def _of_stage(run: Path, manifest: str) -> dict[str, Any]:
    """Return what the manifest of a stage records; whether it may be believed, the seal tells."""
    place = manifest.removesuffix(MANIFEST)
    try:
        return {place + name: entry for name, entry in read_json(run / manifest)["files"].items()}
    except (ClipguardError, LookupError, TypeError, AttributeError):
        return {}


def _untold(error: OSError) -> None:
    raise ClipguardError(f"{error.filename} cannot be looked into ({error.strerror}): nothing is proved")


def _files(run: Path) -> Iterator[str]:
    """Return all that is no folder, but for the seal, the lock and what is unfinished."""
    for folder, folders, names in os.walk(run, onerror=_untold):
        place = Path(folder).relative_to(run)
        if place == Path("stages"):
            folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        yield from ((place / name).as_posix() for name in (*names, *links) if not name.endswith(PART))
