"""The seal of a run folder: the hashes from which every file of the run can be proved."""

import hashlib
import os
from pathlib import Path
from typing import Any, Final

from clipguard.errors import ClipguardError
from clipguard.runs.files import read_json, write_json
from clipguard.safety.limits import opened_regular

SEAL: Final = "seal.json"


def described(file: Path, *, sync: bool = False) -> dict[str, Any]:
    """Return size and sha256 of a regular file, as seals hold them; `sync` brings it to the disk."""
    with opened_regular(file) as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if sync:
            os.fsync(opened.fileno())
        return {"bytes": opened.tell(), "sha256": digest}


def sealed(folder: Path) -> dict[str, Any]:
    """Return size and hash of each sealed file by its path; none where the seal is missing or damaged."""
    try:
        return dict(read_json(folder / SEAL)["files"])
    except (ClipguardError, LookupError, TypeError, ValueError):
        return {}


def seal(folder: Path, name: str) -> None:
    """Write the hash of the file `name` into the seal."""
    files = {**sealed(folder), name: described(folder / name)}
    write_json(folder / SEAL, {"files": dict(sorted(files.items()))})


def unseal(folder: Path, name: str) -> None:
    """Remove the file `name` from the seal: it is about to be replaced."""
    files = sealed(folder)
    if files.pop(name, None) is not None:
        write_json(folder / SEAL, {"files": files})
