"""Where the files inside a tar archive lie. Nothing is extracted; four fields of a header are read.

An own reader of the headers (POSIX.1-2001 ustar and pax; GNU long names), because the standard library's
follows what hostile archives abuse: sparse maps, unbounded pax headers and negative sizes, some of which have
made it loop without end (CVE-2019-20907, CVE-2025-8194). Here every step goes at least one block forward.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits, opened_regular

BLOCK: Final = 512
EXTENDED: Final = 1 << 16
"""Bytes of a pax header or long name; those of archives in use have some hundreds."""

REGULAR: Final = frozenset({b"0", b"\0", b"7"})
FOLDER: Final = b"5"
EXTENSIONS: Final = frozenset({b"x", b"X", b"g", b"L", b"K"})
EMPTY: Final = frozenset({b"1", b"2", b"3", b"4", FOLDER, b"6"})
"""What has no bytes: other readers do not skip any, and would find samples in them that nobody scanned."""
SPECIAL: Final = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One entry of an archive.

    Attributes:
        name: as the archive says, which is never used as a path.
        offset: where its bytes begin, counted from the start of the archive.
        size: number of its bytes.
        fault: why it is not to be read; empty for a plain file.
    """

    name: str
    offset: int
    size: int
    fault: str = ""


class Damaged(Exception):  # noqa: N818  # a finding about the data, no fault
    """The archive cannot be followed any further; its text is the reason."""


def members(path: Path, limits: Limits) -> Iterator[Member]:
    """Return the entries of an archive in order, apart from its folders.

    Raises:
        ClipguardError: no tar archive, damaged or cut short, or more entries than the limit.
    """
    try:
        with opened_regular(path) as opened:
            size = os.fstat(opened.fileno()).st_size
            yield from _walk(opened.fileno(), size, limits)
    except (OSError, Damaged) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ClipguardError(f"{path} cannot be read as tar: {reason}, get it again") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    name: str
    size: int
    kind: bytes


def _walk(descriptor: int, end: int, limits: Limits) -> Iterator[Member]:
    position = count = 0
    extra: dict[str, str] = {}
    while True:
        header = _header(os.pread(descriptor, BLOCK, position), position)
        if header is None:
            return
        count += 1
        if count > limits.members:
            raise Damaged(f"more entries than the limit of {limits.members}")
        position += BLOCK
        if header.kind in EXTENSIONS:
            _check_end(header, position, min(end, position + EXTENDED), "an oversized extended header")
            content = os.pread(descriptor, header.size, position)
            fields = _extended(header.kind, content, position)
            if fields.keys() & extra.keys():
                # Some readers take the first, some the last.
                raise Damaged(f"a second extended header for one entry at byte {position - BLOCK}")
            extra |= fields
        else:
            header = _amended(header, extra, position)
            _check_end(header, position, end, "an entry that is cut short")
            if header.kind in EMPTY:
                _check_end(header, position, position, "a folder or link with contents")
            extra = {}
            if header.kind != FOLDER:
                yield _member(header, position, limits)
        position += -(-header.size // BLOCK) * BLOCK


def _check_end(header: _Header, position: int, end: int, what: str) -> None:
    if position + header.size > end:
        raise Damaged(f"{what} at byte {position - BLOCK}")


def _header(block: bytes, position: int) -> _Header | None:
    """Return the fields of a header; None at the mark of the archive's end."""
    if len(block) < BLOCK:
        raise Damaged(f"its end mark is missing at byte {position}, so that it may be cut short")
    if not block.strip(b"\0"):
        return None
    # The check sum counts its own field as eight spaces.
    if _number(block[148:156], position) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise Damaged(f"a header with a wrong check sum at byte {position}")
    name, prefix = _text(block[:100]), _text(block[345:500])
    # GNU's own format uses the prefix field for something else.
    ustar = block[257:263] == b"ustar\0"
    kind = block[156:157]
    if kind == b"S" and block[482]:
        raise Damaged(f"a sparse file with a map beyond its header at byte {position}")
    return _Header(
        name=f"{prefix}/{name}" if prefix and ustar else name,
        size=_number(block[124:136], position),
        # The oldest archives mark a folder by its name alone.
        kind=FOLDER if kind == b"\0" and name.endswith("/") else kind,
    )


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _number(field: bytes, position: int) -> int:
    """Return an octal number, or one in base 256 for sizes above 8 GiB."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if digits and not all(digit in b"01234567" for digit in digits):
        raise Damaged(f"a header with a damaged number at byte {position}")
    return int(digits or b"0", 8)


def _extended(kind: bytes, content: bytes, position: int) -> dict[str, str]:
    """Return `path` and `size` of a pax header or of a GNU long name; all else in it is passed over."""
    if kind == b"K":
        return {}
    if kind == b"L":
        return {"path": _text(content)}
    fields = {}
    for name, value in _records(content, position):
        if name in ("path", "size") and name in fields:
            raise Damaged(f"a pax header that says {name} twice at byte {position}")
        if name in ("path", "size") or name.startswith("GNU.sparse"):
            fields[name] = value
    if kind == b"g" and fields:
        raise Damaged(f"a header for all entries that renames or resizes them at byte {position}")
    return fields


def _records(content: bytes, position: int) -> Iterator[tuple[str, str]]:
    """Yield name and value of each record of a pax header."""
    while content.strip(b"\0"):
        length, space, _ = content.partition(b" ")
        if not (space and length.isdigit() and len(length) < 6):
            raise Damaged(f"a damaged pax header at byte {position}")
        if not len(length) + 1 < int(length) <= len(content):
            raise Damaged(f"a damaged pax header at byte {position}")
        record, content = content[len(length) + 1 : int(length)], content[int(length) :]
        name, _, value = record.removesuffix(b"\n").partition(b"=")
        yield name.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape")


def _amended(header: _Header, extra: dict[str, str], position: int) -> _Header:
    """Return the header with what the extended headers before it say."""
    if any(name.startswith("GNU.sparse") for name in extra):
        header = replace(header, kind=b"S")
    size = extra.get("size")
    if size is not None:
        if not (size.isascii() and size.isdigit() and len(size) < 20):
            raise Damaged(f"a damaged pax header at byte {position}")
        header = replace(header, size=int(size))
    # A name ends at its first NUL, for whoever unpacks it.
    name = extra.get("path", header.name).partition("\0")[0]
    return replace(header, name=name.removeprefix("./"))


def _member(header: _Header, position: int, limits: Limits) -> Member:
    name = header.name[: limits.name_length]
    fault = ""
    if header.kind not in REGULAR:
        fault = SPECIAL.get(header.kind, "an entry of an unknown kind")
    elif len(header.name) > limits.name_length:
        fault = f"a name of {len(header.name)} characters"
    elif name.startswith("/") or ".." in name.replace("\\", "/").split("/"):
        fault = "a name that leads out of the archive"
    return Member(name=name, offset=position, size=header.size, fault=fault)
