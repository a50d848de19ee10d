"""The process that reads Parquet files for `parquet_process`: it may crash, and only that file is refused.

A request is a line of JSON, `path`, `shown` and the number of `rows` wanted (null for a listing), and then
the rows as int64. An answer is a sequence of frames: a kind, a length, and so many bytes.
"""

import json
import os
import signal
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from clipguard.data.parquet_file import list_shard, read_cells
from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits
from clipguard.safety.sandbox import PATIENCE, enter, write

FRAME: Final = struct.Struct("<BQ")
CELL, REASON, LABELS, REST, DONE, FAULT = range(6)
"""Bytes of an image; why there are none; int64; paths and names as JSON; the end; `errno`, `text` as JSON."""

Send = Callable[[int, bytes], None]


def main(fields: str) -> None:
    """Serve until the parent goes; `fields` are those of `Limits` as JSON."""
    limits = Limits(**json.loads(fields))
    # Arrow's own allocators reserve address space in advance, of which there is little here.
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
    # Now, since no file is to blame for the time that this takes.
    import_module("pyarrow.compute")
    import_module("pyarrow.parquet")
    replies = enter(limits)

    def send(kind: int, content: bytes) -> None:
        write(replies, FRAME.pack(kind, len(content)), content)

    # The parent may be gone before its answer: that is no fault to report.
    with suppress(BrokenPipeError):
        while line := sys.stdin.buffer.readline():
            asked = json.loads(line)
            try:
                _answer(asked, limits, send)
                send(DONE, b"")
            except ClipguardError as error:
                number = getattr(error.__cause__, "errno", None) or 0
                send(FAULT, json.dumps({"errno": number, "text": str(error)}).encode())


def _answer(asked: dict[str, Any], limits: Limits, send: Send) -> None:
    path, shown, count = Path(asked["path"]), asked["shown"], asked["rows"]
    if count is None:
        signal.setitimer(signal.ITIMER_PROF, PATIENCE * limits.seconds)
        found = list_shard(path, shown, limits)
        signal.setitimer(signal.ITIMER_PROF, 0)
        send(LABELS, np.ascontiguousarray(found.labels, np.int64).tobytes())
        send(REST, json.dumps({"paths": found.paths, "names": found.names}).encode())
        return
    wanted = np.frombuffer(sys.stdin.buffer.read(8 * count), np.int64)
    signal.setitimer(signal.ITIMER_PROF, limits.seconds)
    for item in read_cells(path, shown, wanted, limits):
        # For each image anew; what the parent takes to read the last one costs no processor time here.
        signal.setitimer(signal.ITIMER_PROF, limits.seconds)
        if isinstance(item, bytes):
            send(CELL, item)
        else:
            send(REASON, str(item).encode())
    signal.setitimer(signal.ITIMER_PROF, 0)
