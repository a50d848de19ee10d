"""The command line's own process: its memory and its threads. A library must not change its caller's."""

import ctypes
import io
import os
import sys


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks, which makes training on the CPU about 15 % faster.

    By default every large activation is mapped and unmapped anew, and the page faults cost more than the
    arithmetic of a narrow net. Elsewhere than on glibc this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    trim_threshold, mmap_max = -1, -4
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


def wait_asleep() -> None:
    """Let threads of torch sleep while they wait for each other, unless the environment says otherwise.

    It is read when torch is imported. A thread that spins takes the core from the one that it waits for as
    soon as another process computes.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def escape_unwritable() -> None:
    """Let characters that stdout and stderr cannot encode be written as escapes of Python.

    Names of files and classes are anybody's, and a terminal need not take UTF-8. An error would come after
    the whole scan, and hide its answer.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")
