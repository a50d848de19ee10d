"""Sandboxed workers shared by a process: kept while idle, given work in batches, replaced when they die."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Final, TypeVar

from clipguard.errors import ClipguardError
from clipguard.safety.limits import MIB, Limits
from clipguard.safety.sandbox import Frame, Role, Worker, WorkerDied

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


def _take(role: Role, limits: Limits) -> Worker:
    with suppress(IndexError):
        while True:
            worker = idle_workers(role, limits).pop()
            if not worker.has_output():
                return worker
            worker.stop()
    return Worker(role, limits)


def _give_back(worker: Worker) -> None:
    """Keep a worker for the next one; one that still has answers to give is stopped."""
    if worker.idle:
        idle_workers(worker.role, worker.limits).append(worker)
    else:
        worker.stop()


@contextmanager
def lent_worker(role: Role, limits: Limits) -> Iterator[Worker]:
    """Lend a worker for one conversation."""
    worker = _take(role, limits)
    try:
        yield worker
    finally:
        _give_back(worker)


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
        waiting: deque[tuple[Worker | None, Batch]] = deque()
        try:
            for batch in _batches(requests):
                if len(waiting) == self.most:
                    yield from self._finished(waiting, read)
                worker = _take(self.role, self.limits) if any(batch) else None
                waiting.append((worker, batch))
                if worker is not None:
                    worker.send(filter(None, batch))
            while waiting:
                yield from self._finished(waiting, read)
        finally:
            # Left by an error, or by a caller who wants no more.
            for worker, _ in waiting:
                if worker is not None:
                    _give_back(worker)

    def _finished(
        self, waiting: deque[tuple[Worker | None, Batch]], read: Callable[[Worker], Result]
    ) -> Iterator[Result | WorkerDied | None]:
        """Return the results of the first batch of `waiting`, and take it out."""
        worker, batch = waiting[0]
        left = deque(batch)
        while left:
            request = left.popleft()
            if worker is None or request is None:
                yield None
                continue
            result: Result | WorkerDied
            try:
                result = read(worker)
            except WorkerDied as died:
                result = self._retry(worker, request, read, died)
                worker.restart()
                worker.send(filter(None, left))
            yield result
        waiting.popleft()
        if worker is not None:
            with suppress(WorkerDied):
                worker.finish()
            _give_back(worker)

    def _retry(
        self, worker: Worker, request: Frame, read: Callable[[Worker], Result], died: WorkerDied
    ) -> Result | WorkerDied:
        """Return the result of a fresh process: an earlier request may have damaged the memory of the last."""
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
        size += length
        if batch and (len(batch) == BATCH_ITEMS or size > BATCH_BYTES):
            yield batch
            batch, size = [], length
        batch.append(request)
    if batch:
        yield batch
