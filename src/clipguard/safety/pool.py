"""Sandboxed workers shared by a process: kept while idle, given work in batches, replaced when they die."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Final, TypeVar

from clipguard.errors import ClipguardError
from clipguard.safety.limits import MIB, Limits
from clipguard.safety.sandbox import END, Frame, Role, Worker, WorkerDied

BATCH_ITEMS: Final = 64
BATCH_BYTES: Final = 8 * MIB

Result = TypeVar("Result")
Batch = list[Frame | None]


@cache
def idle_workers(role: Role, limits: Limits) -> deque[Worker]:
    """Return the workers without work: starting one takes longer than decoding a hundred small images."""
    return deque()


# A forked child would share the pipes with its parent.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=idle_workers.cache_clear)


@contextmanager
def lent_worker(role: Role, limits: Limits) -> Iterator[Worker]:
    """Lend a worker; it is kept for the next one, or stopped if it still has answers to give."""
    idle = idle_workers(role, limits)
    try:
        worker = idle.pop()
    except IndexError:
        worker = Worker(role, limits)
    else:
        if worker.has_output():
            worker.restart()
    try:
        yield worker
    finally:
        if worker.idle:
            idle.append(worker)
        else:
            worker.stop()


class Pool:
    """Answers requests that are independent of each other, in order: a death costs one of them at most.

    Two workers or more, so that they are at work while the caller uses the results before.
    """

    def __init__(self, role: Role, limits: Limits) -> None:
        self.role, self.limits = role, limits
        self.deaths = 0
        self.most = max(2, min(4, (os.cpu_count() or 1) // 2))

    def results(
        self, requests: Iterable[Frame | None], read: Callable[[Worker], Result]
    ) -> Generator[Result | WorkerDied | None, None, None]:
        """Return one result a request: None for None, which starts no worker.

        Args:
            requests: each a frame.
            read: takes the next result from a worker.

        Raises:
            ClipguardError: too many workers died or were stopped, or none can be started.
        """
        waiting: deque[Iterator[Result | WorkerDied | None]] = deque()
        for batch in _batches(requests):
            if len(waiting) == self.most:
                yield from waiting.popleft()
            waiting.append(self._batch_results(batch, read))
            next(waiting[-1])
        while waiting:
            yield from waiting.popleft()

    def _batch_results(
        self, batch: Batch, read: Callable[[Worker], Result]
    ) -> Iterator[Result | WorkerDied | None]:
        """Send a batch, which is the first step and yields None; then return its results."""
        if not any(batch):
            yield from [None, *batch]  # type: ignore[misc]  # all None
            return
        with lent_worker(self.role, self.limits) as worker:
            worker.send(filter(None, batch))
            yield None
            for place, request in enumerate(batch):
                result: Result | WorkerDied | None = None
                try:
                    result = read(worker) if request is not None else None
                except WorkerDied as died:
                    assert request is not None
                    result = self._retry(worker, request, read, died)
                    worker.restart()
                    worker.send(filter(None, batch[place + 1 :]))
                yield result
            with suppress(WorkerDied):
                worker.read({END: 0})

    def _retry(
        self, worker: Worker, request: Frame, read: Callable[[Worker], Result], died: WorkerDied
    ) -> Result | WorkerDied:
        """Return the result of a fresh process: an earlier request may have damaged the last one's memory."""
        self.deaths += 1
        if self.deaths > self.limits.crashes:
            raise ClipguardError(
                f"the data made {self.deaths} workers ({self.role.name}) crash or hang, "
                f"more than the limit of {self.limits.crashes}: do not use this data set, or raise the limit"
            )
        if died.slow:
            return died
        worker.restart()
        worker.send([request])
        try:
            return read(worker)
        except WorkerDied as error:
            return error


def _batches(requests: Iterable[Frame | None]) -> Iterator[Batch]:
    """Return the requests in lists of bounded length and, but for single large ones, of bounded bytes."""
    batch: Batch = []
    size = 0
    for request in requests:
        length = 0 if request is None else len(request[1])
        if batch and (len(batch) == BATCH_ITEMS or size + length > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(request)
        size += length
    if batch:
        yield batch
