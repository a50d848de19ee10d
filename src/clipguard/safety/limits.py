"""Bounds on what untrusted input may cost: every reader stops at these numbers."""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

from clipguard.errors import ClipguardError

MIB = 1 << 20


_LARGEST: Final = {"seconds": 1_000_000}
"""Beyond these, neither sockets nor timers take a number; of the others, none is beyond 2^62."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on hostile input. An image beyond one is listed as unreadable, anything else is refused.

    Attributes:
        pixels: most of an image, height times width; the default is Pillow's own, a quarter of a GiB decoded.
        side_ratio: longer by shorter side, at most; guides that scale the shorter side up pay for the longer.
        file_bytes: most of one encoded image.
        seconds: processor time to decode one image or to read one from Parquet, at most.
        memory: bytes of address space of a worker that decodes or reads Parquet, at most.
        crashes: workers that may die of images or be stopped at `seconds`, then the source is refused.
        isolated: decode, and read Parquet, in sandboxed workers, so that a crash or a hang costs little.
        links: follow symbolic links that lead out of an image folder.
        members: most entries of an archive or files of a folder.
        name_length: most characters of a file's or a class's name.
        classes: most class names.
        json_bytes: most of one JSON text or list of names; a table of an image folder may have 32 times that.
        array_bytes: most of one unpacked array of an .npz file.
    """

    pixels: int = 89_478_485
    side_ratio: int = 100
    file_bytes: int = 128 * MIB
    seconds: float = 20.0
    memory: int = 4096 * MIB
    crashes: int = 100
    isolated: bool = True
    links: bool = False
    members: int = 20_000_000
    name_length: int = 1024
    classes: int = 50_000
    json_bytes: int = 16 * MIB
    array_bytes: int = 4096 * MIB

    def __post_init__(self) -> None:
        """Raise `ClipguardError` for a limit that nothing could keep."""
        for name in self.__slots__:
            # Also refuses NaN.
            if not (name in ("isolated", "links") or 0 < getattr(self, name) <= _LARGEST.get(name, 2**62)):
                least_and_most = f"above 0 and at most {_LARGEST.get(name, 2**62):,}"
                raise ClipguardError(f"limit {name} is {getattr(self, name)}: give a number {least_and_most}")


@contextmanager
def opened_regular(path: Path) -> Iterator[BufferedReader]:
    """Give a regular file, opened for reading.

    Raises:
        OSError: it cannot be opened, or is a pipe, a device or a folder, which is not waited for.
    """
    # Without O_NONBLOCK, opening a pipe that nobody writes to never ends.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("no regular file")
        with open(descriptor, "rb", closefd=False) as opened:
            yield opened
    finally:
        os.close(descriptor)


def read_bounded(path: Path, most: int) -> bytes:
    """Return the bytes of a regular file of at most `most` bytes.

    Raises:
        OSError: it cannot be read, is larger, or is a pipe, a device or a folder, which is not waited for.
    """
    with opened_regular(path) as opened:
        size = os.fstat(opened.fileno()).st_size
        if size > most:
            raise OSError(f"{size} bytes, more than the limit of {most}")
        # Some files of the system claim to be empty and never end. Others get no more memory than they need.
        expected = size or most
        content = opened.read(expected + 1)
    if len(content) > expected:
        raise OSError(f"more bytes than the limit of {most}" if not size else "it grew while it was read")
    return content


def parse_json(text: str | bytes, limits: Limits) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: damaged, too large, too deep, or not UTF-8.
    """
    if len(text) > limits.json_bytes:
        raise ValueError(f"{len(text)} bytes of JSON, more than the limit of {limits.json_bytes}")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deep") from error
