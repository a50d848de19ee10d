"""Whether a run folder still holds what was written: each file against seal and manifests. Reads only."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clipguard.errors import ClipguardError
from clipguard.store.files import read_json
from clipguard.store.runs import MANIFEST, RunFolder
from clipguard.store.seals import SEAL, described, sealed


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What became of one file; `added` is one that nobody recorded."""

    path: str
    status: Literal["ok", "changed", "missing", "added"]


def compared(name: str, file: Path, entry: Mapping[str, Any]) -> Checked:
    """Return how `file` compares with its recorded size and sha256.

    Raises:
        ClipguardError: it is there and cannot be read.
    """
    try:
        same = file.stat().st_size == entry["bytes"] and described(file) == dict(entry)
    except (FileNotFoundError, NotADirectoryError):
        return Checked(path=name, status="missing")
    except OSError as error:
        raise ClipguardError(f"{file} cannot be read: {error.strerror}: allow it and run again") from error
    return Checked(path=name, status="ok" if same else "changed")


def verify_run(path: Path | str) -> list[Checked]:
    """Return what became of the manifest, every published file, and every file of every finished stage.

    Every hash is computed anew. The seal itself is proved by nothing in the folder: keep its hash elsewhere.

    Raises:
        ClipguardError: no run folder, no seal, or files that cannot be read.
    """
    run = RunFolder.read(path).path
    files = sealed(run)
    if not files:
        raise ClipguardError(f"run folder {run} has no {SEAL}, or a damaged one: run again to write it")
    checks = [compared(name, run / name, entry) for name, entry in files.items()]
    stages = [folder for folder in sorted((run / "stages").iterdir()) if not folder.name.startswith(".")]
    for folder in stages:
        checks += _verify_stage(run, folder, files)
    return checks


def _verify_stage(run: Path, folder: Path, files: Mapping[str, Any]) -> list[Checked]:
    place = folder.relative_to(run).as_posix()
    try:
        recorded = dict(read_json(folder / MANIFEST)["files"])
    except (ClipguardError, LookupError, TypeError, ValueError):
        recorded = {}  # the seal has told of the manifest itself
    checks = [compared(f"{place}/{name}", folder / name, entry) for name, entry in recorded.items()]
    known = {check.path for check in checks} | files.keys()
    there = (file.relative_to(run).as_posix() for file in sorted(folder.rglob("*")) if file.is_file())
    return checks + [Checked(path=name, status="added") for name in there if name not in known]
