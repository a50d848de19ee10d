"""Small tar archives, honest ones by the standard library and hostile ones by hand."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from PIL import Image


def picture(shade: int, kind: str = "PNG") -> bytes:
    """Return a small one-coloured image file."""
    file = io.BytesIO()
    Image.new("RGB", (5, 4), (shade, shade, shade)).save(file, kind)
    return file.getvalue()


def samples(n: int) -> dict[str, bytes]:
    """Return n images with their labels, as webdataset names them; labels are 0 and 1 in turn."""
    out = {}
    for row in range(n):
        out[f"{row:04d}.png"] = picture(row)
        out[f"{row:04d}.cls"] = b"%d" % (row % 2)
    return out


def tar_bytes(files: dict[str, bytes], format_: int = tarfile.PAX_FORMAT) -> bytes:
    """Return an archive of the files in order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format_) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            # A fraction needs a pax header, as webdataset's own writer makes one for each file.
            info.mtime = 1.5 if format_ == tarfile.PAX_FORMAT else 1
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def write_tar(path: Path, files: dict[str, bytes], format_: int = tarfile.PAX_FORMAT) -> Path:
    """Return `path`, now such an archive."""
    path.write_bytes(tar_bytes(files, format_))
    return path


def add_special(path: Path, name: str, kind: bytes, link: str = "/etc/passwd") -> Path:
    """Append a link, device or pipe to an archive."""
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        archive.addfile(info)
    return path


def header(
    name: bytes,
    size: bytes,
    kind: bytes = b"0",
    checksum: bytes | None = None,
    more: Mapping[int, bytes] = MappingProxyType({}),
) -> bytes:
    """Return one header with any fields at all, `more` by their places; its check sum right unless given."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    for place, field in more.items():
        block[place : place + len(field)] = field
    block[148:156] = checksum or b"%06o\0 " % sum(block)
    return bytes(block)
