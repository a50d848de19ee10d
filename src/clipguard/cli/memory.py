"""The memory of the command line's own process. A library must not change that of its caller."""

import ctypes


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
