"""Items -> answers, in processes of their own where the platform has them and the limits say so."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Final, Protocol, runtime_checkable

from clipguard.data import Item
from clipguard.data.decode.pixels import Answer, Wanted, answer
from clipguard.data.decode.wire import LENGTH, PIXELS, REASON, REPLY, REQUEST, SIZE, WANTED
from clipguard.errors import ClipguardError, one_line
from clipguard.safety.limits import MIB, Limits
from clipguard.safety.sandbox import Child, WorkerDied, command_of, confines

BATCH_ITEMS: Final = 64
BATCH_BYTES: Final = 8 * MIB
LONGEST_REASON: Final = 1000
COMMAND: Final = command_of("clipguard.data.decode.worker")


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


class Worker(Child):
    """One decoding process."""

    trade = "decoder"

    def send(self, wanted: Wanted, items: Iterable[Item]) -> None:
        """Ask for the answers to those of `items` that are bytes."""
        sent = [item for item in items if isinstance(item, bytes)]
        parts = [REQUEST.pack(WANTED.index(wanted), len(sent))]
        for item in sent:
            parts += [LENGTH.pack(len(item)), item]
        if sent:
            self.tell(b"".join(parts))

    def answer(self, wanted: Wanted) -> Answer:
        """Return the next answer; one that was not asked for, or of an absurd size, is not believed.

        Raises:
            WorkerDied: the process died or was stopped.
        """
        self.greet()
        kind, height, width = REPLY.unpack(self.hear(REPLY.size).tobytes())
        if kind in (PIXELS, SIZE) and wanted == WANTED[kind] and 0 < height * width <= self.limits.pixels:
            if kind == SIZE:
                return int(height), int(width)
            return self.hear(height * width * 3).reshape(height, width, 3)
        if kind == REASON and height <= LONGEST_REASON:
            return one_line(self.hear(height).tobytes().decode("utf-8", "replace"))
        raise self.nonsense()


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
            except WorkerDied as lost:
                found = self._again(wanted, worker, item, lost)
                worker.restart()
                worker.send(wanted, left)
            yield found

    def _again(self, wanted: Wanted, worker: Worker, item: bytes, lost: WorkerDied) -> Answer:
        """Return the answer of a fresh process: an earlier image may have damaged the memory of the last."""
        self._count()
        if lost.slow:
            return str(lost)
        worker.restart()
        worker.send(wanted, [item])
        try:
            return worker.answer(wanted)
        except WorkerDied as error:
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


@cache
def _pool(limits: Limits, command: tuple[str, ...]) -> deque[Worker]:
    """Return the processes without work: starting one takes longer than decoding a hundred small images."""
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
    if confines(limits):
        yield Workers(limits, command)
    else:
        yield InProcess(limits)
