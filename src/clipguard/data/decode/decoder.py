"""Items -> pixels or sizes: encoded images in sandboxed workers, arrays in this process."""

from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import partial
from itertools import tee
from typing import Final

import numpy as np

from clipguard.data import Item
from clipguard.data.decode.pixels import Decoded, Request, decoded
from clipguard.data.decode.worker import KINDS, PIXELS, REASON, SIDES, SIZE
from clipguard.safety.limits import Limits
from clipguard.safety.pool import Pool
from clipguard.safety.sandbox import REASON_BYTES, Role, Worker, WorkerDied, reason_of, role_of, sandboxes

ROLE: Final = role_of("decoder", "clipguard.data.decode.worker")


class Decoder:
    """Decodes items in order; a worker that dies of an image costs that image.

    Where limits or platform allow no workers, all is decoded in this process, and a crash ends everything.
    """

    def __init__(self, limits: Limits, role: Role = ROLE) -> None:
        self.limits = limits
        self._pool = Pool(role, limits) if sandboxes(limits) else None

    def results(self, request: Request, items: Iterable[Item]) -> Iterator[Decoded]:
        """Return pixels, or height and width, of each item, or the reason why there are none.

        Raises:
            ClipguardError: too many workers died or were stopped, or none can be started.
        """
        if self._pool is None:
            yield from (decoded(request, item, self.limits) for item in items)
            return
        items, sent = tee(items)
        frames = ((KINDS[request], item) if isinstance(item, bytes) else None for item in sent)
        with closing(self._pool.results(frames, partial(_read, request))) as results:
            for item, result in zip(items, results, strict=True):
                if result is None:
                    yield decoded(request, item, self.limits)
                else:
                    yield str(result) if isinstance(result, WorkerDied) else result


def _read(request: Request, worker: Worker) -> Decoded:
    """Return the next result of a worker; one of an impossible size is not believed.

    Raises:
        WorkerDied: the process died or was stopped.
    """
    kind, content = worker.read({SIZE: SIDES.size, REASON: REASON_BYTES})
    if kind == REASON:
        return reason_of(content)
    height, width = SIDES.unpack(content) if len(content) == SIDES.size else (0, 0)
    if not 0 < height * width <= worker.limits.pixels:
        raise worker.protocol_error()
    if request == "size":
        return height, width
    _, pixels = worker.read({PIXELS: 3 * height * width})
    if len(pixels) != 3 * height * width:
        raise worker.protocol_error()
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)
