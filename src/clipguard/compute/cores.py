"""How many cores this process may use, and how many threads somebody has chosen. Light: no torch."""

import os
from pathlib import Path
from typing import Final

_GROUPS: Final = Path("/sys/fs/cgroup")


def cores() -> int:
    """Return the cores that this process may use, by affinity and by its group's quota."""
    try:
        there = len(os.sched_getaffinity(0))
    except AttributeError:  # elsewhere than on Linux
        there = os.cpu_count() or 1
    return max(1, min(there, quota(_GROUPS) or there))


def threads_of_environment() -> int | None:
    """Return the number of threads that OMP_NUM_THREADS names, None if it names none."""
    # OpenMP takes a list, one number for each level of nesting.
    named = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(named) if named.isdecimal() and int(named) > 0 else None


def quota(groups: Path) -> int | None:
    """Return the cores that a container's quota pays for, rounded up, if it can be read and there is one."""
    try:
        if (groups / "cpu.max").exists():
            paid, period = (groups / "cpu.max").read_text().split()
        else:
            paid, period = (
                (groups / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
            )
        count = -(-int(paid) // int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return count if count > 0 else None
