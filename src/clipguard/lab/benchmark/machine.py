"""What a figure depends on beside its settings: machine and commit; and what it cost."""

import functools
import platform
import re
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import torch

from clipguard.compute.device import arithmetic

_CODE: Final = Path(__file__).parents[2]
"""The folder of the package: any change of it may change a figure."""

_SELF: Final = Path("/proc/self")


def machine() -> str:
    """Return processor, threads, torch and GPU, if any, in one line: the same line gives the same floats."""
    means = arithmetic()
    gpu = f", {means['device']}" if "device" in means else ""
    if "trained_in" in means:
        gpu = f", trainings in {means['trained_in']}"
    threads = f"{means['threads']} threads, torch {torch.__version__}"
    return f"{platform.machine()}, {_processor()}, {threads}{gpu}"


@functools.cache
def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    name = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return name[1] if name else platform.processor() or "unknown processor"


def commit() -> str | None:
    """Return the commit of this code's checkout, or None; with `-dirty` where the code has changes.

    Other files of the checkout do not count, such as results that a benchmark writes there; nor does a
    repository around an installation, which holds other code.
    """
    if not _git("ls-files", "--", "__init__.py"):
        return None
    head, changes = _git("rev-parse", "--short", "HEAD"), _git("status", "--porcelain", "--", ".")
    return None if head is None or changes is None else head + ("-dirty" if changes else "")


def _git(*arguments: str) -> str | None:
    """Return what git says about the folder of this code; None where it cannot say."""
    command = ["git", *arguments]
    try:
        done = subprocess.run(command, cwd=_CODE, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def forget_peak_memory() -> None:
    """Let `peak_memory` count from here on, where the system can; elsewhere it counts from the start."""
    with suppress(OSError):
        (_SELF / "clear_refs").write_text("5")


def peak_memory() -> float:
    """Return the most memory that this process has held since `forget_peak_memory`, in MB."""
    try:
        peak = re.search(r"^VmHWM:\s*(\d+) kB$", (_SELF / "status").read_text(), re.MULTILINE)
    except OSError:
        peak = None
    if peak is not None:
        return int(peak[1]) * 1024 / 1e6
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
