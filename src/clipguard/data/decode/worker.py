"""The process that decodes: it may crash, hang or swell, and nothing is lost with it but one image."""

import json
import signal
import struct
import sys
from contextlib import suppress
from typing import BinaryIO

import numpy as np

from clipguard.data.decode.pixels import Answer, answer
from clipguard.data.decode.wire import LENGTH, PIXELS, REASON, REPLY, REQUEST, SIZE, WANTED
from clipguard.safety.limits import Limits
from clipguard.safety.sandbox import enter, write


def _reply(descriptor: int, found: Answer) -> None:
    if isinstance(found, np.ndarray):
        height, width, _ = found.shape
        pixels = np.ascontiguousarray(found).data.cast("B")
        write(descriptor, REPLY.pack(PIXELS, height, width), pixels)
    elif isinstance(found, tuple):
        write(descriptor, REPLY.pack(SIZE, *found))
    else:
        reason = found.encode("utf-8", "backslashreplace")
        write(descriptor, REPLY.pack(REASON, len(reason), 0) + reason)


def _serve(requests: BinaryIO, replies: int, limits: Limits) -> None:
    """Answer batches until the parent closes its end; a whole batch is read before the first answer."""
    while header := requests.read(REQUEST.size):
        kind, count = REQUEST.unpack(header)
        items = [requests.read(LENGTH.unpack(requests.read(LENGTH.size))[0]) for _ in range(count)]
        for item in items:
            # Processor time, since on a busy machine a good image may take long by the clock.
            signal.setitimer(signal.ITIMER_PROF, limits.seconds)
            found = answer(WANTED[kind], item, limits)
            signal.setitimer(signal.ITIMER_PROF, 0)
            _reply(replies, found)


def main(fields: str) -> None:
    """Serve until the parent goes; `fields` are those of `Limits` as JSON."""
    limits = Limits(**json.loads(fields))
    replies = enter(limits)
    # The parent may be gone before its answer: that is no fault to report.
    with suppress(BrokenPipeError, struct.error):
        _serve(sys.stdin.buffer, replies, limits)
