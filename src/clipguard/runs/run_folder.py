"""Run folders: what was run on which data, and a cache of its finished stages.

    RUN/manifest.json              what was run, on which data, with which versions
    RUN/stages/<name>/             a finished stage: its files and a manifest.json, written last
    RUN/stages/.<name>-<key>.part  a stage that is being computed, or that was killed and can resume
    RUN/*                          published copies: samples.parquet, model.safetensors, report.html ...
    RUN/seal.json                  sha256 of the manifest, of every stage's manifest and every published file

A stage is found again by its key, a hash of its name, its settings and the keys of what it reads; so a
changed setting recomputes this stage and all that stand on it, and nothing else. A stage's manifest holds the
hashes of its files, so that whoever keeps the hash of `seal.json` elsewhere can prove every file of the run.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from clipguard.errors import ClipguardError, fault_of
from clipguard.runs.files import PART, read_json, replacing, write_json
from clipguard.runs.locks import LOCK, RunLock, lock_run
from clipguard.runs.seal import SEAL, described, seal, sealed, unseal

STORE_FORMAT: Final = 1
"""Raise it when the meaning of stored files changes: older stages are then computed again."""

_HASH_ON_READ: Final = 64 * 2**20
MANIFEST: Final = "manifest.json"
_RESUME: Final = "resume" + PART
_CLOCK: Final = ".started"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceInfo:
    """What a run folder remembers of its data: enough to refuse other data later."""

    kind: str
    location: str
    fingerprint: str
    n: int
    class_names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A finished stage.

    Attributes:
        path: the folder with its files.
        key: what later stages name among their inputs.
        seconds: time spent computing it, killed attempts included up to the last file they wrote.
        cached: whether it was found and not computed now.
    """

    path: Path
    key: str
    seconds: float
    cached: bool


class RunFolder:
    """One run on one data set; several `RunFolder` objects of one process may share a folder.

    Attributes:
        path: the folder.
        manifest: the contents of `manifest.json`.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        """Use `open` or `read`."""
        self.path = path
        self.manifest = manifest
        self._lock: RunLock | None = None
        self._created = False

    @classmethod
    def open(cls, path: Path | str, source: SourceInfo, config: Mapping[str, Any], seed: int) -> "RunFolder":
        """Return the run folder at `path`, to be created by its first stage if there is none.

        Raises:
            ClipguardError: `path` holds something else, another data set's run, or a damaged manifest.
        """
        path = Path(path)
        # Arrow and safetensors take no other names.
        if any("\ud800" <= letter <= "\udfff" for letter in str(path)):
            raise ClipguardError(f"run folder {path} has a name that is no UTF-8: give another")
        manifest = {
            "format": STORE_FORMAT,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": _versions(),
            "platform": platform.platform(),
            "source": asdict(source),
            "config": dict(config),
            "seed": seed,
        }
        if (path / MANIFEST).exists():
            manifest["created"] = _of_same_data(cls.read(path), source.fingerprint)["created"]
        else:
            _refuse_foreign(path)
        return cls(path, json.loads(json.dumps(manifest)))

    @classmethod
    def read(cls, path: Path | str) -> "RunFolder":
        """Return an existing run folder, for readers that have no data source at hand.

        Raises:
            ClipguardError: there is no run folder, or its manifest is damaged or of another format.
        """
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise ClipguardError(f"{path} is no run folder (it has no {MANIFEST}): give the folder of a run")
        manifest = read_json(path / MANIFEST)
        source = manifest.get("source") if isinstance(manifest, dict) else None
        if not isinstance(source, dict) or not {"fingerprint", "location"} <= source.keys():
            raise ClipguardError(
                f"run folder {path} has a damaged {MANIFEST}: delete the folder and run again"
            )
        if manifest.get("format") != STORE_FORMAT or "created" not in manifest:
            raise ClipguardError(
                f"run folder {path} was written by another version of clipguard: use a new one"
            )
        return cls(path, manifest)

    def stage(
        self,
        name: str,
        *,
        config: Mapping[str, Any],
        inputs: Sequence[str],
        compute: Callable[[Path], None],
    ) -> Stage:
        """Return the stage `name`, computed only if no finished one has the same settings and inputs.

        Args:
            name: folder name below `stages/`; an older stage of this name is replaced.
            config: all that changes the result, as JSON values.
            inputs: keys of the stages, or fingerprints of the data, that `compute` reads.
            compute: fills the folder it is given. After a kill it is given the same folder again with all
                that it had written, so it may resume from there; `resume_folder` is the place for what only
                serves that.

        Raises:
            ClipguardError: another process works in this folder, or a fault of disk or system, after which
                running again resumes; or `compute` raised it for bad input, and then nothing of this stage is
                left, nor of a run folder that has no finished stage.
        """
        key = _key(name, config, inputs)
        self._claim()
        final = self.path / "stages" / name
        part = self.path / "stages" / f".{name}-{key[:12]}{PART}"
        manifest = f"stages/{name}/{MANIFEST}"
        with self._told(f"stage {name!r}"):
            found = _finished(final, key)
            if found is not None:
                if manifest not in sealed(self.path):  # killed just before
                    seal(self.path, manifest)
                return found
            # A run killed between "manifest written" and "renamed" has a whole stage under the working name.
            if _finished(part, key) is None:
                self._compute(
                    part, compute, {"key": key, "stage": name, "config": config, "inputs": list(inputs)}
                )
            unseal(self.path, manifest)
            _sweep(part)
            _replace_folder(part, final)
            seal(self.path, manifest)
            for stale in final.parent.glob(f".{name}-????????????{PART}"):
                shutil.rmtree(stale)
            written = read_json(final / MANIFEST)
            return Stage(path=final, key=key, seconds=written["seconds"], cached=False)

    def finished(self, name: str) -> Stage | None:
        """Return the finished stage `name` whatever its settings, or None."""
        path = self.path / "stages" / name
        return _finished(path, None)

    def publish(self, file: Path, name: str) -> Path:
        """Return the path of `name` in the run folder, now a copy of a stage's `file`."""
        with self.publishing(name) as path, replacing(path) as part:
            shutil.copyfile(file, part)
        return path

    def retract(self, name: str) -> None:
        """Remove the copy `name` that an earlier command, with other settings, has published, if any."""
        self._claim()
        with self._told(name):
            unseal(self.path, name)
            (self.path / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def publishing(self, name: str) -> Iterator[Path]:
        """Give the path of `name` in the run folder, to be written in the block, after which it is sealed.

        Raises:
            ClipguardError: another process works in this folder, or it cannot be written.
        """
        self._claim()
        with self._told(name):
            yield self.path / name
            seal(self.path, name)

    def close(self) -> None:
        """Let other processes use the folder; also happens when this object is gone."""
        self._lock = None

    def _claim(self) -> None:
        """Create the folder and its manifest if needed, and keep other processes out."""
        if self._lock is not None:
            return
        try:
            (self.path / "stages").mkdir(parents=True, exist_ok=True)
            self._lock = lock_run(self.path)
            self._created = not (self.path / MANIFEST).exists()
            if not self._created:  # another process may have made it since it was opened
                _of_same_data(self.read(self.path), self.manifest["source"]["fingerprint"])
            self._write_manifest()
        except ClipguardError:
            self._lock = None
            raise
        except OSError as error:
            with contextlib.suppress(OSError):
                self._withdraw()
            self._lock = None
            raise ClipguardError(f"run folder {self.path} cannot be written: {fault_of(error)}") from error

    def _write_manifest(self) -> None:
        """Write and seal the manifest, unless it is there: a new seal would hide that somebody changed it."""
        path = self.path / MANIFEST
        if path.exists() and read_json(path) == self.manifest and MANIFEST in sealed(self.path):
            return
        unseal(self.path, MANIFEST)
        write_json(path, self.manifest)
        seal(self.path, MANIFEST)

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turn a fault of disk or system inside the block into one line."""
        try:
            yield
        except OSError as error:
            raise ClipguardError(f"{what} of run folder {self.path}: {fault_of(error)}") from error

    def _compute(self, part: Path, compute: Callable[[Path], None], manifest: dict[str, Any]) -> None:
        before = _seconds_so_far(part)
        part.mkdir(exist_ok=True)
        (part / _CLOCK).write_text(repr(before))
        start = time.monotonic()
        try:
            compute(part)
        except ClipguardError as error:
            if not _is_passing(error):
                # Bad input stays bad: there is nothing to resume, and a half-written run would only puzzle.
                shutil.rmtree(part)
                self._withdraw()
            raise
        manifest["seconds"] = before + time.monotonic() - start
        files = [file for file in sorted(part.rglob("*")) if _is_result(file.relative_to(part))]
        manifest["files"] = {
            file.relative_to(part).as_posix(): described(file, sync=True) for file in files if file.is_file()
        }
        # What an attempt resumes from stays until the manifest is there: hashing many GB takes its time.
        write_json(part / MANIFEST, manifest)
        _sync_folder(part)

    def _withdraw(self) -> None:
        """Remove a run folder that this object created and that no stage has been finished in."""
        stages = self.path / "stages"
        if not self._created or any(stages.iterdir()):
            return
        stages.rmdir()
        for name in (MANIFEST, SEAL, LOCK):
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something else may have been put there meanwhile: it stays
            self.path.rmdir()
        self._lock, self._created = None, False


def _of_same_data(run: RunFolder, fingerprint: str) -> dict[str, Any]:
    if run.manifest["source"]["fingerprint"] != fingerprint:
        where = run.manifest["source"]["location"]
        raise ClipguardError(
            f"run folder {run.path} belongs to other data ({where}): give a new folder, or delete this one"
        )
    return run.manifest


def _refuse_foreign(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise ClipguardError(f"run folder {path} is a file: give a folder")
    # A run killed in its very first moment leaves no manifest, only these.
    ours = {LOCK, "stages", MANIFEST + PART}
    if path.is_dir() and any(entry.name not in ours for entry in path.iterdir()):
        raise ClipguardError(f"folder {path} is not empty and no run folder: give a new or an empty folder")


@functools.cache
def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("clipguard", "numpy", "torch", "open_clip_torch"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _key(name: str, config: Mapping[str, Any], inputs: Sequence[str]) -> str:
    # With the release, since what computes a stage may change from one to the next.
    parts = [STORE_FORMAT, _versions()["clipguard"], name, config, list(inputs)]
    text = json.dumps(parts, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _finished(folder: Path, key: str | None) -> Stage | None:
    """Return the stage in `folder` if it is whole (and has `key`), else None.

    Sizes are always compared; hashes up to 64 MiB a file, where they cost milliseconds. A torn write never
    gets a manifest, so hashing 10 GB of images at each start would guard only against an ageing disk.
    """
    try:
        manifest = read_json(folder / MANIFEST)
        files = {folder / name: entry for name, entry in manifest["files"].items()}
        found = Stage(path=folder, key=manifest["key"], seconds=float(manifest["seconds"]), cached=True)
        whole = all(_matches(file, entry["bytes"], entry["sha256"]) for file, entry in files.items())
    except (ClipguardError, OSError, LookupError, TypeError, AttributeError, ValueError):
        return None
    return found if whole and key in (None, found.key) else None


def _matches(file: Path, size: int, digest: str) -> bool:
    return file.stat().st_size == size and (size > _HASH_ON_READ or described(file)["sha256"] == digest)


def resume_folder(stage: Path) -> Path:
    """Return the folder, below a stage's, of what lets a killed attempt resume; it goes when all is done."""
    folder = stage / _RESUME
    folder.mkdir(exist_ok=True)
    return folder


def _is_result(path: Path) -> bool:
    """Return whether a path below a stage's folder is no leftover and no clock."""
    return path.name != _CLOCK and not any(part.endswith(PART) for part in path.parts)


def _is_passing(error: ClipguardError) -> bool:
    """Return whether it comes from disk or system, which may be well again, and not from the input itself."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno is not None


def _sweep(part: Path) -> None:
    """Remove what a finished stage does not need."""
    (part / _CLOCK).unlink(missing_ok=True)
    for leftover in sorted(part.rglob("*" + PART), reverse=True):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)


def _seconds_so_far(part: Path) -> float:
    """Return the time earlier attempts spent: a killed process cannot note it, its last file's date can."""
    try:
        before = float((part / _CLOCK).read_text())
        started = (part / _CLOCK).stat().st_mtime
        return before + max(file.stat().st_mtime for file in part.rglob("*")) - started
    except (OSError, ValueError):
        return 0.0


def _replace_folder(part: Path, final: Path) -> None:
    """Rename `part` to `final`; a kill between the two renames leaves `part` whole, to be found next time."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    part.rename(final)
    _sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
