"""Changes of bytes for `fuzz_readers.py`, and the repair of check sums, without which few changes get far."""

import struct
import zlib
from collections.abc import Callable

import numpy as np

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x20, 0x0A, 0x2F)
EXTREMES = (b"\xff", b"\0", b"\x7f", b"\x80")
LARGEST = 1 << 22

Change = Callable[[bytearray, slice, np.random.Generator], None]


def _flip(data: bytearray, where: slice, draw: np.random.Generator) -> None:
    data[where.start] ^= 1 << int(draw.integers(8))


def _set(data: bytearray, where: slice, draw: np.random.Generator) -> None:
    data[where.start] = int(draw.choice(INTERESTING))


def _noise(data: bytearray, where: slice, draw: np.random.Generator) -> None:
    data[where] = draw.bytes(where.stop - where.start)


def _cut(data: bytearray, where: slice, draw: np.random.Generator) -> None:
    del data[where]


def _insert(data: bytearray, where: slice, draw: np.random.Generator) -> None:
    data[where.start : where.start] = draw.bytes(where.stop - where.start)


def _repeat(data: bytearray, where: slice, draw: np.random.Generator) -> None:
    data[where.start : where.start] = data[where] * int(draw.choice((1, 1, 1, 50)))


def _end(data: bytearray, where: slice, draw: np.random.Generator) -> None:
    del data[where.start :]


def _extreme(data: bytearray, where: slice, draw: np.random.Generator) -> None:
    """Put the largest, the smallest or a negative number of two, four or eight bytes."""
    width = int(draw.choice((2, 4, 8)))
    data[where.start : where.start + width] = EXTREMES[int(draw.integers(len(EXTREMES)))] * width


def _move(data: bytearray, where: slice, draw: np.random.Generator) -> None:
    """Put a piece of the file over another."""
    start = int(draw.integers(len(data)))
    data[where] = data[start : start + where.stop - where.start]


CHANGES: tuple[Change, ...] = (_flip, _set, _noise, _cut, _insert, _repeat, _end, _extreme, _move)


def mutated(content: bytes, draw: np.random.Generator) -> bytes:
    """Return the content after some changes, usually one or two."""
    data = bytearray(content)
    for _ in range(min(8, int(draw.geometric(0.5)))):
        if not data:
            break
        start = int(draw.integers(len(data)))
        stop = min(len(data), start + int(draw.integers(1, 33)))
        CHANGES[int(draw.integers(len(CHANGES)))](data, slice(start, stop), draw)
    return bytes(data[:LARGEST])


def with_png_sums(content: bytes) -> bytes:
    """Return a PNG whose chunks have right check sums again."""
    out, place = bytearray(content[:8]), 8
    while place + 12 <= len(content):
        length = struct.unpack(">I", content[place : place + 4])[0]
        body = content[place + 4 : place + 8 + length]
        out += content[place : place + 4] + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + length
    return bytes(out)


def with_tar_sums(content: bytes) -> bytes:
    """Return an archive in which every block that looks like a header has a right check sum again."""
    data = bytearray(content)
    for start in range(0, len(data) - 511, 512):
        if data[start + 257 : start + 262] == b"ustar":
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    return bytes(data)
