"""The one exception that a user is meant to see, and how faults of disk and system are put into its words."""

import errno
import os
from typing import Final


def one_line(text: str) -> str:
    """Return `text` with control, direction and line-break marks spelt out: names come from strangers."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException) -> str:
    """Return what `error` says, in one line of bounded length; its type when it says nothing."""
    return one_line(((str(error)[:2000].splitlines() or [""])[0] or type(error).__name__)[:200])


class ClipguardError(Exception):
    """A fault in what the user gave, in one line: what happened, to which input, what to do.

    The command line prints the text without a traceback and exits with code 2.
    """

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text))


_REMEDIES: Final = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit on file sizes",
    errno.EMFILE: "raise the limit on open files",
    errno.EROFS: "make it writable, or give another folder",
    errno.EACCES: "allow it, or give another folder",
    errno.EPERM: "allow it, or give another folder",
    errno.EIO: "check the disk",
}


def fault_of(error: OSError) -> str:
    """Return what disk or system refused, on which file, and what to do, in one line."""
    number = error.errno
    what = " ".join(str(error).split()) if number is None else os.strerror(number)
    where = f" ({error.filename})" if error.filename else ""
    remedy = _REMEDIES.get(error.errno or 0, "set this right")
    return f"{what or type(error).__name__}{where}: {remedy} and run the same command again"
