"""A small piece of work on a run folder, and blows that strike any one of its steps on the disk.

The tests demand that each is survived; `tools/trust_table.py` counts them.
"""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipguard.errors import ClipguardError
from clipguard.runs import (
    DescribedStage,
    RunFolder,
    SourceInfo,
    read_array,
    resume_folder,
    verify_run,
    write_array,
    write_json,
    write_pieces,
    write_table,
)
from tiny_data import tree

SOURCE = SourceInfo(kind="folder", location="./images", key="f1", n=3, class_names=("cat", "dog"))
OPEN = Path.open


def described(name: str, *inputs: str) -> DescribedStage:
    """Return a stage without settings."""
    return DescribedStage(name=name, version=1, config={}, inputs=inputs)


def work(path: Path) -> None:
    """Do what a run does to the disk: shards, a merge, a table, a stage on top, published copies."""

    def read(folder: Path) -> None:
        parts = [resume_folder(folder) / f"shard-{number}.npy" for number in range(2)]
        for number, part in enumerate(parts):
            if not part.exists():
                write_array(part, np.full((3, 2), number, np.float32))
        pieces = [read_array(part, mmap=True) for part in parts]
        write_pieces(folder / "all.npy", (6, 2), pieces[0].dtype, pieces)
        write_table(folder / "rows.parquet", {"id": ["a", "b"], "label": np.arange(2)})

    run = RunFolder.open(path, SOURCE, {}, seed=0)
    first = run.stage(described("early", "f1"), read)
    last = run.stage(described("late", first.key), lambda at: write_json(at / "out.json", [1, 2]))
    run.publish(last.path / "out.json", "out.json")
    with run.publishing("summary.json") as to:
        write_json(to, {"all": "well"})


def settled(path: Path) -> dict[str, bytes]:
    """Return the files of a run without those that hold times or hashes of them."""
    timed = ("manifest.json", "seal.json")
    return {name: content for name, content in tree(path).items() if not name.endswith(timed)}


def strike(patch: pytest.MonkeyPatch, at: int, blow: Callable[[], None]) -> list[int]:
    """Let `blow` happen just before the step number `at` of those that touch the disk; return their count."""
    steps = [0]

    def guarded(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            if original is OPEN and not {"w", "wb"} & {*arguments[1:], *options.values()}:
                return original(*arguments, **options)
            steps[0] += 1
            if steps[0] == at:
                blow()
            return original(*arguments, **options)

        return step

    for where, names in (
        (os, ("fsync",)),
        (shutil, ("copyfile", "rmtree")),
        (Path, ("replace", "rename", "mkdir", "unlink", "write_text", "open")),
    ):
        for name in names:
            patch.setattr(where, name, guarded(getattr(where, name)))
    return steps


def full_disk() -> None:
    """Say what a full disk says."""
    raise OSError(28, "No space left on device")


@dataclass(frozen=True, slots=True, kw_only=True)
class Blow:
    """What one blow came to.

    Attributes:
        at: number of the step that was struck.
        line: what the work said of it; nothing where it was killed, or went on.
        left: half-written published files.
        mended: the work, done again, left the same bytes as if nothing had happened, and a seal that holds.
    """

    at: int
    line: str
    left: tuple[str, ...]
    mended: bool


def full_disks(place: Path, stride: int = 1) -> Iterator[Blow]:
    """Yield what a full disk does in every `stride`-th step."""
    wanted = _undisturbed(place)
    with pytest.MonkeyPatch.context() as patch:
        counted = strike(patch, -1, full_disk)
        work(place / "counted")
    for at in range(1, counted[0] + 1, stride):
        path = place / f"full-{at}"
        line = _refusal(path, at)
        left = tuple(part.name for part in path.glob("*.part"))
        yield Blow(at=at, line=line, left=left, mended=_mended(path, wanted))


def kills(place: Path, stride: int = 1) -> Iterator[Blow]:
    """Yield what a kill does in every `stride`-th step, each made good under another kill half as far on."""
    wanted, at = _undisturbed(place), 1
    while _killed_in_a_child(place / f"killed-{at}", at):
        path = place / f"killed-{at}"
        _killed_in_a_child(path, max(1, at // 2))
        yield Blow(at=at, line="", left=(), mended=_mended(path, wanted))
        at += stride


def _undisturbed(place: Path) -> dict[str, bytes]:
    work(place / "whole")
    return settled(place / "whole")


def _mended(path: Path, wanted: dict[str, bytes]) -> bool:
    work(path)
    return settled(path) == wanted and {check.status for check in verify_run(path)} == {"ok"}


def _refusal(path: Path, at: int) -> str:
    try:
        with pytest.MonkeyPatch.context() as patch:
            strike(patch, at, full_disk)
            work(path)
    except ClipguardError as error:
        return str(error)
    return ""


def _killed_in_a_child(path: Path, at: int) -> bool:
    child = os.fork()
    if child == 0:
        try:
            with pytest.MonkeyPatch.context() as patch:
                strike(patch, at, lambda: os.kill(os.getpid(), signal.SIGKILL))
                work(path)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)
