"""Items -> pixels or sizes: encoded images in sandboxed workers, arrays in this process."""

import math
import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import accumulate
from typing import Annotated, Final

import numpy as np
from msgspec import Meta

from clipguard.data import Item
from clipguard.data.decode.pixels import Decoded, Request, Views, decoded
from clipguard.errors import ClipguardError
from clipguard.safety.limits import MIB, Limits
from clipguard.safety.sandbox import (
    REASON_BYTES,
    Message,
    Role,
    Worker,
    WorkerDied,
    lent_worker,
    role_of,
    sandboxes,
    serve,
)

ROLE: Final = role_of("decoder", "clipguard.data.decode.decoder")
BATCH_ITEMS: Final = 64
BATCH_BYTES: Final = 8 * MIB
MOST_WORKERS: Final = 16


class Encoded(Message):
    """An image, and what is wanted of it."""

    request: Request
    content: memoryview


class Result(Message):
    """The pixels of an image, or of its views one after the other; its size alone; or its fault."""

    reason: Annotated[str, Meta(max_length=REASON_BYTES)] = ""
    height: int = 0
    width: int = 0
    bits: Annotated[int, Meta(ge=0, le=16)] = 0
    transparent: bool = False
    pixels: memoryview = memoryview(b"")


class Decoder:
    """Decodes items in order; a worker that dies of an image costs that image.

    Two workers or more, so that they are at work while the caller uses the results before. Where limits or
    platform allow no workers, all is decoded in this process, and a crash ends everything.
    """

    def __init__(self, limits: Limits, role: Role = ROLE) -> None:
        self.limits, self.role = limits, role
        self.deaths = 0
        self.most = max(2, min(MOST_WORKERS, os.cpu_count() or 1))

    def results(self, request: Request, items: Iterable[Item]) -> Iterator[Decoded]:
        """Return what is wanted of each item, or the reason why there is none.

        Raises:
            ClipguardError: too many workers died or were stopped, or none can be started.
        """
        waiting: deque[Iterator[Decoded]] = deque()
        for batch in _batches(items):
            if len(waiting) == self.most:
                yield from waiting.popleft()
            waiting.append(self._batch_results(request, batch))
            next(waiting[-1])
        while waiting:
            yield from waiting.popleft()

    def _batch_results(self, request: Request, batch: list[Item]) -> Iterator[Decoded]:
        """Send a batch, which is the first step and yields nothing of use; then return its results."""
        if not (sandboxes(self.limits) and any(isinstance(item, bytes) for item in batch)):
            yield ""
            yield from (decoded(request, item, self.limits) for item in batch)
            return
        with lent_worker(self.role, self.limits) as worker:
            worker.send(_encoded(request, batch))
            yield ""
            for place, item in enumerate(batch):
                if not isinstance(item, bytes):
                    yield decoded(request, item, self.limits)
                    continue
                try:
                    result = _read(request, worker)
                except WorkerDied as died:
                    result = self._retry(request, item, worker, died)
                    worker.restart()
                    worker.send(_encoded(request, batch[place + 1 :]))
                yield result
            with suppress(WorkerDied):
                worker.finish()

    def _retry(self, request: Request, item: bytes, worker: Worker, died: WorkerDied) -> Decoded:
        """Return the result of a fresh process: an earlier image may have damaged the last one's memory."""
        self.deaths += 1
        if self.deaths > self.limits.crashes:
            raise ClipguardError(
                f"the data made {self.deaths} workers ({self.role.name}) crash or hang, "
                f"more than the limit of {self.limits.crashes}: do not use this data set, or raise the limit"
            )
        if died.slow:
            return str(died)
        worker.restart()
        worker.send(_encoded(request, [item]))
        try:
            return _read(request, worker)
        except WorkerDied as error:
            return str(error)


def _encoded(request: Request, items: list[Item]) -> list[Encoded]:
    return [Encoded(request, memoryview(item)) for item in items if isinstance(item, bytes)]


def _read(request: Request, worker: Worker) -> Decoded:
    """Return the next result of a worker; one of an impossible size is not believed.

    Raises:
        WorkerDied: the process died or was stopped.
    """
    shapes = [(*view.size, 3) for view in request] if isinstance(request, tuple) else []
    most = 3 * worker.limits.pixels if request == "pixels" else sum(map(math.prod, shapes))
    result: Result = worker.read(Result, most + REASON_BYTES)
    size = result.height, result.width
    if result.reason:
        return result.reason
    if not (size[0] > 0 and 0 < math.prod(size) <= worker.limits.pixels):
        raise worker.protocol_error()
    if request == "size":
        return size
    shapes = shapes or [(*size, 3)]
    ends = list(accumulate(map(math.prod, shapes)))
    if len(result.pixels) != ends[-1]:
        raise worker.protocol_error()
    parts = np.split(np.frombuffer(result.pixels, np.uint8), ends[:-1])
    images = tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
    return images[0] if request == "pixels" else Views(size, images, result.bits, result.transparent)


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Return the items in lists of bounded length and, but for single large ones, of bounded bytes."""
    batch: list[Item] = []
    size = 0
    for item in items:
        length = len(item) if isinstance(item, bytes) else 0
        if batch and (len(batch) == BATCH_ITEMS or size + length > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += length
    if batch:
        yield batch


def main(fields: str) -> None:
    """Decode in this process, the worker, until the parent goes; `fields` are those of `Limits` as JSON."""
    serve(fields, Encoded, _answer)


def _answer(image: Encoded, limits: Limits) -> Iterator[Result]:
    result = decoded(image.request, bytes(image.content), limits)
    if isinstance(result, str):
        yield Result(reason=result)
    elif isinstance(result, Views):
        pixels = np.concatenate([view.ravel() for view in result.images]).data
        yield Result(
            height=result.size[0],
            width=result.size[1],
            bits=result.bits,
            transparent=result.transparent,
            pixels=pixels,
        )
    elif isinstance(result, tuple):
        yield Result(height=result[0], width=result[1])
    else:
        height, width = result.shape[:2]
        pixels = np.ascontiguousarray(result).data.cast("B")
        yield Result(height=height, width=width, pixels=pixels)
