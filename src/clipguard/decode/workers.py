"""Items -> answers, in processes of their own where the platform has them and the limits say so."""

import json
import os
import select
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cache
from typing import Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from clipguard.decode.pixels import Answer, Wanted, answer
from clipguard.decode.wire import LENGTH, PIXELS, READY, REASON, REPLY, REQUEST, SIZE, WANTED
from clipguard.errors import ClipguardError, one_line
from clipguard.limits import MIB, Limits
from clipguard.sources import Item

BATCH_ITEMS: Final = 64
BATCH_BYTES: Final = 8 * MIB
LONGEST_REASON: Final = 1000
START_SECONDS: Final = 120.0
PATIENCE: Final = 10
"""Seconds by the clock for each of processor time, after which a process that sleeps is stopped too."""

# In isolated mode the interpreter finds nothing in the working folder, which may be the stranger's.
COMMAND: Final = (
    "-I",
    "-c",
    "import sys; sys.path[:] = sys.argv[2:]; from clipguard.decode.worker import main; main(sys.argv[1])",
)


@runtime_checkable
class Decoder(Protocol):
    """Answers items in order."""

    def answers(self, wanted: Wanted, items: Iterable[Item]) -> Iterator[Answer]:
        """Return one answer an item."""


class InProcess:
    """Decodes right here: a crash is the end of everything."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    def answers(self, wanted: Wanted, items: Iterable[Item]) -> Iterator[Answer]:
        """Return one answer an item."""
        for item in items:
            yield answer(wanted, item, self.limits)


class Lost(Exception):  # noqa: N818  # a finding about the data, no fault
    """A process has died or was stopped; its text is the reason.

    Attributes:
        slow: it took too long, so that trying again would only take as long again.
    """

    def __init__(self, reason: str, slow: bool) -> None:
        super().__init__(reason)
        self.slow = slow


class Worker:
    """One decoding process and the pipes to it."""

    def __init__(self, limits: Limits, command: Sequence[str]) -> None:
        self.limits = limits
        self.command = [sys.executable, *command, json.dumps(asdict(limits)), *_search_path()]
        self._start()

    def _start(self) -> None:
        self.greeted = False
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            # A session of its own: an interrupt from the terminal is for the parent to handle.
            self.process = subprocess.Popen(
                self.command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, **threads},
            )
        except OSError as error:
            raise _not_started(str(error)) from error
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.requests, self.replies = self.process.stdin.fileno(), self.process.stdout.fileno()
        self.ready = select.poll()
        self.ready.register(self.replies, select.POLLIN)

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def restart(self) -> None:
        """Put a fresh process in the place of this one."""
        self.stop()
        self._start()

    def send(self, wanted: Wanted, items: Iterable[Item]) -> None:
        """Ask for the answers to those of `items` that are bytes."""
        sent = [item for item in items if isinstance(item, bytes)]
        parts = [REQUEST.pack(WANTED.index(wanted), len(sent))]
        for item in sent:
            parts += [LENGTH.pack(len(item)), item]
        left = memoryview(b"".join(parts))
        # A process that dies while it is being told has nothing to answer, which is noticed there.
        with suppress(BrokenPipeError):
            while sent and len(left):
                left = left[os.write(self.requests, left) :]

    def answer(self, wanted: Wanted) -> Answer:
        """Return the next answer; one that was not asked for, or of an absurd size, is not believed.

        Raises:
            Lost: the process died or was stopped.
        """
        self._greet()
        kind, height, width = REPLY.unpack(self._read(REPLY.size).tobytes())
        if kind in (PIXELS, SIZE) and wanted == WANTED[kind] and 0 < height * width <= self.limits.pixels:
            if kind == SIZE:
                return int(height), int(width)
            return self._read(height * width * 3).reshape(height, width, 3)
        if kind == REASON and height <= LONGEST_REASON:
            return one_line(self._read(height).tobytes().decode("utf-8", "replace"))
        self.process.kill()
        raise Lost("decoder answers nonsense", slow=False)

    def _greet(self) -> None:
        """Wait until the process is there; that it cannot start is no fault of an image."""
        if self.greeted:
            return
        try:
            said = self._read(len(READY), START_SECONDS).tobytes()
        except Lost as error:
            raise _not_started(str(error)) from error
        if said != READY:
            raise _not_started("it answers nonsense")
        self.greeted = True

    def _read(self, count: int, seconds: float | None = None) -> UInt8[np.ndarray, "count"]:
        """Return exactly `count` bytes."""
        patience = PATIENCE * self.limits.seconds if seconds is None else seconds
        content = np.empty(count, np.uint8)
        left = memoryview(content.data)
        while len(left):
            if not self.ready.poll(1000 * patience):
                self.process.kill()
                raise Lost(f"took longer than {patience:g} s by the clock", slow=True)
            got = os.readv(self.replies, [left])
            if not got:
                raise self._death()
            left = left[got:]
        return content

    def _death(self) -> Lost:
        code = self.process.wait()
        if code == -signal.SIGPROF:
            return Lost(f"took longer than {self.limits.seconds:g} s to decode", slow=True)
        if code < 0:
            with suppress(ValueError):
                return Lost(f"decoder crashed ({signal.Signals(-code).name})", slow=False)
        return Lost(f"decoder crashed (exit code {code})", slow=False)


class Workers:
    """Decodes in processes: one image at most is lost when one of them dies.

    Two or more, so that images are decoded while the caller works on those before.
    """

    def __init__(self, limits: Limits, command: Sequence[str] = COMMAND) -> None:
        self.limits, self.command = limits, tuple(command)
        self.losses = 0
        self.most = max(2, min(4, (os.cpu_count() or 1) // 2))

    def answers(self, wanted: Wanted, items: Iterable[Item]) -> Iterator[Answer]:
        """Return one answer an item.

        Raises:
            ClipguardError: too many processes died or were stopped, or none can be started.
        """
        waiting: deque[tuple[Worker, list[Item]]] = deque()
        try:
            for batch in _batches(items):
                if len(waiting) == self.most:
                    yield from self._collected(wanted, *waiting[0])
                    _keep(waiting.popleft()[0], self.command)
                worker = _idle(self.limits, self.command)
                waiting.append((worker, batch))
                worker.send(wanted, batch)
            while waiting:
                yield from self._collected(wanted, *waiting[0])
                _keep(waiting.popleft()[0], self.command)
        finally:
            # Left by an error or by a caller who wants no more: these still have answers to give.
            for worker, _ in waiting:
                worker.stop()

    def _collected(self, wanted: Wanted, worker: Worker, batch: list[Item]) -> Iterator[Answer]:
        left = deque(batch)
        while left:
            item = left.popleft()
            if not isinstance(item, bytes):
                yield answer(wanted, item, self.limits)
                continue
            try:
                found = worker.answer(wanted)
            except Lost as lost:
                found = self._again(wanted, worker, item, lost)
                worker.restart()
                worker.send(wanted, left)
            yield found

    def _again(self, wanted: Wanted, worker: Worker, item: bytes, lost: Lost) -> Answer:
        """Return the answer of a fresh process: an earlier image may have damaged the memory of the last."""
        self._count()
        if lost.slow:
            return str(lost)
        worker.restart()
        worker.send(wanted, [item])
        try:
            return worker.answer(wanted)
        except Lost as error:
            return str(error)

    def _count(self) -> None:
        self.losses += 1
        if self.losses > self.limits.crashes:
            raise ClipguardError(
                f"images made {self.losses} decoding processes crash or hang, more than the limit of "
                f"{self.limits.crashes}: do not use this data set, or raise the limit"
            )


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Return the items in lists of bounded length and, but for single large items, of bounded bytes."""
    batch: list[Item] = []
    size = 0
    for item in items:
        size += len(item) if isinstance(item, bytes) else 0
        if batch and (len(batch) == BATCH_ITEMS or size > BATCH_BYTES):
            yield batch
            batch, size = [], len(item) if isinstance(item, bytes) else 0
        batch.append(item)
    if batch:
        yield batch


def _search_path() -> list[str]:
    return [os.path.abspath(path) for path in sys.path if path]


def _not_started(why: str) -> ClipguardError:
    return ClipguardError(
        f"a decoding process cannot be started ({why}): free memory, or switch the limit `isolated` off"
    )


@cache
def _pool(limits: Limits, command: tuple[str, ...]) -> deque[Worker]:
    """Return the processes without work: starting one takes longer than decoding a hundred small images.

    They end by themselves when this process does, since their pipe closes.
    """
    return deque()


# A forked child would share the pipes with its parent.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _idle(limits: Limits, command: tuple[str, ...]) -> Worker:
    with suppress(IndexError):
        return _pool(limits, command).pop()
    return Worker(limits, command)


def _keep(worker: Worker, command: tuple[str, ...]) -> None:
    _pool(worker.limits, command).append(worker)


@contextmanager
def decoding(limits: Limits, command: Sequence[str] = COMMAND) -> Iterator[Decoder]:
    """Return what decodes: in processes of their own if `limits` say so and this platform can."""
    if limits.isolated and os.name == "posix" and sys.executable:
        yield Workers(limits, command)
    else:
        yield InProcess(limits)
