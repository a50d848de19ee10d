"""The one exception that a user is meant to see, and the reasons of other exceptions in its words."""

import errno
import os
from typing import Final

LONGEST_REASON: Final = 240
"""Characters; other programs' messages can have any length."""


def one_line(text: str) -> str:
    """Return `text` with control, direction and line-break marks escaped: names come from strangers."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def reason_of(error: BaseException) -> str:
    """Return the message of `error` in one line of at most `LONGEST_REASON` characters, or else its type."""
    text = one_line(" ".join(str(error)[:5000].split()) or type(error).__name__)
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 3] + "..."


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
    """Return which fault of disk or system stopped the run, on which file, and what to do, in one line."""
    number = error.errno
    what = reason_of(error) if number is None else os.strerror(number)
    where = f" ({error.filename})" if error.filename else ""
    remedy = _REMEDIES.get(error.errno or 0, "set this right")
    return f"{what}{where}: {remedy} and run the same command again"
