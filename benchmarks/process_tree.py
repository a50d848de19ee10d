"""What a command costs: memory, processor time and reading of its whole process tree, from /proc (Linux)."""

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TICKS = os.sysconf("SC_CLK_TCK")
PERIOD = 0.2
"""Seconds between samples."""


@dataclass(frozen=True)
class Sample:
    """One process.

    Attributes:
        anonymous: memory that no file holds, in bytes.
        cpu: seconds of the processor, those of children that it has waited for included.
        from_disk: bytes fetched from storage, likewise.
        from_anywhere: bytes that read calls returned, likewise.
    """

    anonymous: int
    cpu: float
    from_disk: int
    from_anywhere: int


@dataclass
class Cost:
    """What a command has cost so far; memory is the most of any sample.

    Attributes:
        code: exit code.
        wall: seconds by the clock.
        cpu: seconds of the processor, user and system, of all processes.
        main: anonymous memory of the command's own process, in bytes.
        tree: the same, summed over it and its descendants.
        phases: `main` and `tree` for each value that `phase` returned, in order.
        processes: most processes at a time.
        read_from_disk: bytes fetched from storage.
        read_from_anywhere: bytes that read calls returned, also from sockets and the page cache.
    """

    code: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    main: int = 0
    tree: int = 0
    phases: dict[Any, list[int]] = field(default_factory=dict)
    processes: int = 0
    read_from_disk: int = 0
    read_from_anywhere: int = 0


def measured(command: Sequence[str], *, phase: Callable[[], Any], each: Callable[[], None]) -> Cost:
    """Run a command to its end and return its cost.

    Args:
        command: its output goes to this process's stderr.
        phase: asked at every sample; peaks are also kept by its answers.
        each: called at every sample.
    """
    cost, began = Cost(), time.perf_counter()
    process = subprocess.Popen(command, stdout=2, stdin=subprocess.DEVNULL)
    last: dict[int, Sample] = {}
    # WNOWAIT: a process that has ended, but was not waited for, still has its files in /proc.
    ended = os.WEXITED | os.WNOWAIT | os.WNOHANG
    while os.waitid(os.P_PID, process.pid, ended) is None:
        last = sampled(process.pid)
        _keep(cost, process.pid, last, phase())
        each()
        time.sleep(PERIOD)
    # Workers end by themselves after the command and are waited for by nobody here: their last sample counts.
    last |= {process.pid: sample(process.pid)} if (Path("/proc") / str(process.pid)).exists() else {}
    cost.wall = time.perf_counter() - began
    cost.cpu = sum(one.cpu for one in last.values())
    cost.read_from_disk = sum(one.from_disk for one in last.values())
    cost.read_from_anywhere = sum(one.from_anywhere for one in last.values())
    cost.code = process.wait()
    return cost


def _keep(cost: Cost, main: int, samples: dict[int, Sample], phase: Any) -> None:
    own = samples[main].anonymous if main in samples else 0
    tree = sum(one.anonymous for one in samples.values())
    cost.main, cost.tree = max(cost.main, own), max(cost.tree, tree)
    cost.processes = max(cost.processes, len(samples))
    before = cost.phases.get(phase, [0, 0])
    cost.phases[phase] = [max(before[0], own), max(before[1], tree)]


def sampled(root: int) -> dict[int, Sample]:
    """Return a sample of a process and of each of its descendants, by process number."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                parents[int(entry)] = int(_stat(int(entry))[1])
    family, grown = {root}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in family} - family
        family, grown = family | more, bool(more)
    samples = {}
    for process in family:
        # It may end at any moment.
        with suppress(OSError):
            samples[process] = sample(process)
    return samples


def sample(process: int) -> Sample:
    """Return a sample of one process.

    Raises:
        OSError: there is no such process any more.
    """
    status = _fields(process, "status")
    io = _fields(process, "io")
    stat = _stat(process)
    return Sample(
        anonymous=int(status.get("RssAnon", "0").split()[0]) * 1024,
        cpu=sum(int(stat[place]) for place in (11, 12, 13, 14)) / TICKS,
        from_disk=int(io["read_bytes"]),
        from_anywhere=int(io["rchar"]),
    )


def _fields(process: int, name: str) -> dict[str, str]:
    lines = Path(f"/proc/{process}/{name}").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _stat(process: int) -> list[str]:
    # The name, in brackets, may hold spaces and brackets; the state follows.
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
