"""The process that decodes: it may crash, hang or swell, and nothing is lost with it but one image.

It speaks plain bytes over two pipes. Nothing is pickled, so that a codec which an image has taken over can
answer wrong pixels, but cannot make the parent run anything.
"""

import json
import os
import resource
import signal
import struct
import sys
from contextlib import suppress
from typing import BinaryIO

import numpy as np

from clipguard.decode.pixels import Answer, answer
from clipguard.decode.wire import LENGTH, PIXELS, READY, REASON, REPLY, REQUEST, SIZE, WANTED
from clipguard.limits import Limits


def _confine(limits: Limits) -> None:
    """Give up what decoding does not need; some systems do not know all of these bounds."""
    for kind, most in (
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_CORE, 0),
        # No file can be written, whatever a codec is made to do.
        (resource.RLIMIT_FSIZE, 0),
    ):
        with suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))


def _own_stdout() -> int:
    """Return a descriptor of stdout that nobody else knows: libraries in C print what they like."""
    ours = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return ours


def _write(descriptor: int, *parts: bytes | memoryview) -> None:
    for part in parts:
        left = memoryview(part)
        while len(left):
            left = left[os.write(descriptor, left) :]


def _reply(descriptor: int, found: Answer) -> None:
    if isinstance(found, np.ndarray):
        height, width, _ = found.shape
        pixels = np.ascontiguousarray(found).data.cast("B")
        _write(descriptor, REPLY.pack(PIXELS, height, width), pixels)
    elif isinstance(found, tuple):
        _write(descriptor, REPLY.pack(SIZE, *found))
    else:
        reason = found.encode("utf-8", "backslashreplace")
        _write(descriptor, REPLY.pack(REASON, len(reason), 0) + reason)


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
    replies = _own_stdout()
    _confine(limits)
    _write(replies, READY)
    # The parent may be gone before its answer: that is no fault to report.
    with suppress(BrokenPipeError, struct.error):
        _serve(sys.stdin.buffer, replies, limits)
