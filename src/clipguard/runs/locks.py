"""One process at a time in a run folder."""

import fcntl
import os
import weakref
from pathlib import Path
from typing import Final

from clipguard.errors import ClipguardError

LOCK: Final = ".lock"
_NONE: Final = -1


class Lock:
    """This process's claim on a folder, given up when its last holder is gone or the process ends."""

    def __init__(self, folder: Path) -> None:
        self.descriptor = _NONE
        self.descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClipguardError(
                f"run folder {folder} is in use by another process: wait for it, or give another folder"
            ) from None

    def __del__(self) -> None:
        if self.descriptor != _NONE:
            os.close(self.descriptor)

    def holds(self, folder: Path) -> bool:
        """Return whether the locked file is the one in the folder: it may have been replaced."""
        try:
            return os.path.samestat(os.fstat(self.descriptor), (folder / LOCK).stat())
        except FileNotFoundError:
            return False


_locks: "weakref.WeakValueDictionary[Path, Lock]" = weakref.WeakValueDictionary()


def lock(folder: Path) -> Lock:
    """Return the process's one lock on `folder`: two flocks of one process would shut each other out.

    Raises:
        ClipguardError: another process has it.
        OSError: the lock cannot be written.
    """
    where = folder.resolve()
    held = _locks.get(where)
    while held is None or not held.holds(where):
        held = _locks[where] = Lock(where)
    return held
