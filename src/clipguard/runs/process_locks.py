"""Locks between processes, given up when the block or the process ends."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Give whether the file `path` is now locked by this block: always, unless it is not to `wait`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
