"""Locks between processes, released when the last holder is gone or the process ends."""

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from clipguard.errors import ClipguardError

LOCK: Final = ".lock"


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Give whether the file `path` is now locked by this block: always, unless it is not to `wait`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


class RunLock:
    """This process's claim on a run folder: nobody releases it, it goes with its last holder."""

    def __init__(self, folder: Path) -> None:
        # Held by the object, whichever thread asks.
        self._lock = FileLock(folder / LOCK, thread_local=False)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ClipguardError(
                f"run folder {folder} is in use by another process: wait for it, or give another folder"
            ) from None
        self._file = (folder / LOCK).stat()

    def holds(self, folder: Path) -> bool:
        """Return whether the locked file is the one in the folder: it may have been replaced."""
        try:
            return os.path.samestat(self._file, (folder / LOCK).stat())
        except FileNotFoundError:
            return False


_locks: "weakref.WeakValueDictionary[Path, RunLock]" = weakref.WeakValueDictionary()


def lock_run(folder: Path) -> RunLock:
    """Return the process's one lock on `folder`: two locks of one process would shut each other out.

    Raises:
        ClipguardError: another process has it.
        OSError: the lock cannot be written.
    """
    path = folder.resolve()
    lock = _locks.get(path)
    while lock is None or not lock.holds(path):
        lock = _locks[path] = RunLock(path)
    return lock
