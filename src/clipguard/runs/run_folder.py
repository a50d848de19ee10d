"""Run folders: what was run on which data, and a cache of its finished stages.

    RUN/manifest.json              what was run, on which data, with which versions
    RUN/stages/<name>/             its finished stages, see `stage`
    RUN/*                          published copies: samples.parquet, model.safetensors, report.html ...
    RUN/seal.json                  sha256 of the manifest, of every stage's manifest and every published file

A stage is found again by its key, a hash of its name, version, settings, inputs, GPU and, where its result
depends on them, number of threads and precision of trainings. So a changed setting recomputes this stage and
all that stand on it, and nothing else. A stage's manifest holds the hashes of its files. Whoever keeps the
hash of `seal.json` elsewhere can prove every file of the run.
"""

import contextlib
import functools
import importlib.metadata
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from clipguard.errors import ClipguardError, fault_of
from clipguard.runs.files import PART, read_json, replacing, write_json
from clipguard.runs.locks import LOCK, RunLock, lock_run
from clipguard.runs.seal import SEAL, described, seal, sealed, unseal
from clipguard.runs.stage import (
    CLOCK,
    FORMAT,
    MANIFEST,
    DescribedStage,
    FinishedStage,
    finished_stage,
    is_result,
    replace_folder,
    seconds_so_far,
    stage_key,
    sweep,
    sync_folder,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """What the last bits of results depend on.

    Attributes:
        threads: of the processor that train one large net.
        device: that computes.
        trained_in: precision of large trainings on the processor.
    """

    threads: int = 1
    device: str = "cpu"
    trained_in: str = "float32"


PLAIN: Final = Arithmetic()


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceInfo:
    """What a run folder remembers of its data: enough to refuse other data later.

    Attributes:
        kind: of the source.
        location: what messages call it.
        key: `ImageSource.key` when the folder was made; the contents' own hash stands in the reading stage.
        n: samples.
        class_names: in label order.
        class_keys: what the source itself calls its classes, whatever names were given; None without any.
        from_path: whether another command can open the same by its path.
    """

    kind: str
    location: str
    key: str
    n: int
    class_names: tuple[str, ...]
    class_keys: tuple[str, ...] | None = None
    from_path: bool = False


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
    def open(
        cls,
        path: Path | str,
        source: SourceInfo,
        config: Mapping[str, Any],
        *,
        seed: int,
        arithmetic: Arithmetic = PLAIN,
    ) -> "RunFolder":
        """Return the run folder at `path`, to be created by its first stage if there is none.

        Args:
            path: the folder.
            source: the data.
            config: all settings, as JSON values.
            seed: root of all randomness.
            arithmetic: what the last bits of results depend on; keys hold what is not as usual.

        Raises:
            ClipguardError: `path` holds something else, another data set's run, or a damaged manifest.
        """
        path = Path(path)
        # Arrow and safetensors take no other names.
        if any("\ud800" <= letter <= "\udfff" for letter in str(path)):
            raise ClipguardError(f"run folder {path} has a name that is no UTF-8: give another")
        manifest = {
            "format": FORMAT,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions_of("clipguard", "numpy", "torch", "open_clip_torch"),
            "platform": platform.platform(),
            "source": asdict(source),
            "config": dict(config),
            "seed": seed,
            **asdict(arithmetic),
        }
        if (path / MANIFEST).exists():
            manifest["created"] = _of_same_data(cls.read(path), source.key)["created"]
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
        if not isinstance(source, dict) or not {"key", "location"} <= source.keys():
            raise ClipguardError(
                f"run folder {path} has a damaged {MANIFEST}: delete the folder and run again"
            )
        if manifest.get("format") != FORMAT or "created" not in manifest:
            raise ClipguardError(
                f"run folder {path} was written by another version of clipguard: use a new one"
            )
        return cls(path, manifest)

    def key(self, described: DescribedStage) -> str:
        """Return the key of a stage."""
        return stage_key(self._description(described))

    def working(self, described: DescribedStage) -> Path:
        """Return the folder in which a stage is computed, and where a killed attempt has left its files."""
        return self.path / "stages" / f".{described.name}-{self.key(described)[:12]}{PART}"

    def _description(self, described: DescribedStage) -> dict[str, Any]:
        description = {
            "stage": described.name,
            "version": described.version,
            "config": dict(described.config),
            "inputs": list(described.inputs),
            # Without that, one thread computes each number.
            "threads": self.manifest["threads"] if described.threaded else 1,
        }
        if self.manifest["device"] != "cpu":
            description["device"] = self.manifest["device"]
        elif described.threaded and self.manifest.get("trained_in", "float32") != "float32":
            description["trained_in"] = self.manifest["trained_in"]
        return description

    def stage(self, described: DescribedStage, compute: Callable[[Path], None]) -> FinishedStage:
        """Return a stage, computed only if no finished one of its name has the same key.

        Args:
            described: all that decides its result; an older stage of its name is replaced.
            compute: fills the folder it is given. After a kill it is given the same folder again with all
                that it had written, so it may resume from there; `resume_folder` is the place for what only
                serves that.

        Raises:
            ClipguardError: another process works in this folder, or a fault of disk or system, after which
                running again resumes; or `compute` raised it for bad input, and then nothing of this stage is
                left, nor of a run folder that has no finished stage.
        """
        name, key, part = described.name, self.key(described), self.working(described)
        self._claim()
        final = self.path / "stages" / name
        manifest = f"stages/{name}/{MANIFEST}"
        with self._in_one_line(f"stage {name!r}"):
            there = finished_stage(final, key)
            if there is not None:
                if manifest not in sealed(self.path):  # killed just before
                    seal(self.path, manifest)
                return there
            # A run killed between "manifest written" and "renamed" has a whole stage under the working name.
            if finished_stage(part, key) is None:
                self._compute(part, compute, {"key": key, **self._description(described)})
            unseal(self.path, manifest)
            sweep(part)
            replace_folder(part, final)
            seal(self.path, manifest)
            for stale in final.parent.glob(f".{name}-????????????{PART}"):
                shutil.rmtree(stale)
            written = read_json(final / MANIFEST)
            return FinishedStage(path=final, key=key, seconds=written["seconds"], cached=False)

    def finished(self, name: str) -> FinishedStage | None:
        """Return the finished stage `name` whatever its settings, or None."""
        path = self.path / "stages" / name
        return finished_stage(path, None)

    def publish(self, file: Path, name: str) -> Path:
        """Return the path of `name` in the run folder, now a copy of a stage's `file`."""
        with self.publishing(name) as path, replacing(path) as part:
            shutil.copyfile(file, part)
        return path

    def retract(self, name: str) -> None:
        """Remove the copy `name` that an earlier command, with other settings, has published, if any."""
        self._claim()
        with self._in_one_line(name):
            unseal(self.path, name)
            (self.path / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def publishing(self, name: str) -> Iterator[Path]:
        """Give the path of `name` in the run folder, to be written in the block, after which it is sealed.

        Raises:
            ClipguardError: another process works in this folder, or it cannot be written.
        """
        self._claim()
        with self._in_one_line(name):
            yield self.path / name
            seal(self.path, name)

    def _claim(self) -> None:
        """Create the folder and its manifest if needed, and keep other processes out."""
        if self._lock is not None:
            return
        try:
            (self.path / "stages").mkdir(parents=True, exist_ok=True)
            self._lock = lock_run(self.path)
            self._created = not (self.path / MANIFEST).exists()
            if not self._created:  # another process may have made it since it was opened
                _of_same_data(self.read(self.path), self.manifest["source"]["key"])
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
    def _in_one_line(self, what: str) -> Iterator[None]:
        """Turn a fault of disk or system inside the block into one line."""
        try:
            yield
        except OSError as error:
            raise ClipguardError(f"{what} of run folder {self.path}: {fault_of(error)}") from error

    def _compute(self, part: Path, compute: Callable[[Path], None], manifest: dict[str, Any]) -> None:
        before = seconds_so_far(part)
        part.mkdir(exist_ok=True)
        (part / CLOCK).write_text(repr(before))
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
        files = [file for file in sorted(part.rglob("*")) if is_result(file.relative_to(part))]
        manifest["files"] = {
            file.relative_to(part).as_posix(): described(file, sync=True) for file in files if file.is_file()
        }
        # What an attempt resumes from stays until the manifest is there: hashing many GB takes its time.
        write_json(part / MANIFEST, manifest)
        sync_folder(part)

    def _withdraw(self) -> None:
        """Remove a run folder that this object created and that no stage has been finished in."""
        stages = self.path / "stages"
        if not self._created or any(not stage.name.endswith(PART) for stage in stages.iterdir()):
            return
        shutil.rmtree(stages)
        for name in (MANIFEST, SEAL, LOCK):
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something else may have been put there meanwhile: it stays
            self.path.rmdir()
        self._lock, self._created = None, False


def _of_same_data(run: RunFolder, key: str) -> dict[str, Any]:
    if run.manifest["source"]["key"] != key:
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
def versions_of(*packages: str) -> dict[str, str | None]:
    """Return the versions of Python and of packages by name; None for one that is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def _is_passing(error: ClipguardError) -> bool:
    """Return whether it comes from disk or system, which may be well again, and not from the input itself."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno is not None
