"""Hostile image files, each among sound ones in a folder."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from hostile.case import Case, Outcome, encoded, good, good_folder, pixels, trap

CODECS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, content: bytes, length: int | None = None) -> bytes:
    """Return a PNG chunk, with a false length on request."""
    size = struct.pack(">I", len(content) if length is None else length)
    return size + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *more: bytes, depth: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    """Return a PNG by hand with other chunks before its pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return SIGNATURE + head + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def small(*more: bytes) -> bytes:
    """Return a sound 2 x 2 PNG with other chunks in it."""
    return png(2, 2, *more, data=zlib.compress(bytes(14)))


def inflated(kind: bytes, size: int) -> bytes:
    """Return a text chunk that unpacks to `size` zeros."""
    packed = zlib.compress(bytes(size), 9)
    return chunk(kind, (b"k\0\0" if kind != b"iTXt" else b"k\0\1\0\0\0") + packed)


def gif_of_many_frames(count: int) -> bytes:
    """Return a GIF whose frames of one pixel are written by hand, since a library would take minutes."""
    head = b"GIF89a" + struct.pack("<HHBBB", 2, 2, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"," + struct.pack("<HHHHB", 0, 0, 2, 2, 0) + b"\2\3\x84\x8f\5\0"
    return head + frame * count + b";"


def tiff(entries: list[tuple[int, int, int, int]], after: int = 0, more: bytes = b"") -> bytes:
    """Return a TIFF of one directory by hand; `after` is where it says the next begins."""
    fields = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    directory = struct.pack("<H", len(entries)) + fields + struct.pack("<I", after)
    return b"II*\0" + struct.pack("<I", 8) + directory + more


def tiff_size(width: int, height: int, **options: int) -> bytes:
    """Return a grey TIFF that claims a size and has no pixels."""
    fields = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    return tiff([*fields, (273, 4, 1, 200), (278, 4, 1, height), (279, 4, 1, width * height)], **options)


def many_pages(count: int) -> bytes:
    """Return a TIFF of many pages."""
    file = io.BytesIO()
    page = Image.new("L", (2, 2))
    page.save(file, "TIFF", save_all=True, append_images=[page] * (count - 1))
    return file.getvalue()


def deep(dtype: type, kind: str) -> bytes:
    """Return an image of more than 8 bits a channel."""
    return encoded(Image.fromarray(np.arange(256).reshape(16, 16).astype(dtype)), kind)


def turned(orientation: int) -> bytes:
    """Return a JPEG that says how it was held."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(pixels()), "JPEG", exif=exif)


def mode(name: str, kind: str) -> bytes:
    """Return an image of another colour mode."""
    return encoded(Image.fromarray(pixels()).convert(name), kind)


def flat(width: int, height: int) -> bytes:
    """Return a PNG of one colour: some kilobytes whatever its size."""
    return encoded(Image.new("1", (width, height)))


FILES: dict[str, tuple[Outcome, Callable[[], bytes]]] = {
    "empty": ("listed", lambda: b""),
    "one byte": ("listed", lambda: b"\0"),
    "text": ("listed", lambda: b"not an image"),
    "zeros": ("listed", lambda: bytes(10_000)),
    "a script": ("listed", lambda: b"#!/bin/sh\ntouch executed\n"),
    "an SVG that loads a file": (
        "listed",
        lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    ),
    "PostScript": ("listed", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n"),
    "a PDF": ("listed", lambda: b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\n%%EOF"),
    "a zip": ("listed", lambda: b"PK\5\6" + bytes(18)),
    "JPEG called PNG": ("accepted", lambda: mode("RGB", "JPEG")),
    "GIF called PNG": ("accepted", lambda: mode("P", "GIF")),
    "WebP called PNG": ("accepted", lambda: mode("RGB", "WEBP")),
    "PNG bomb of 10,000 x 10,000": ("listed", lambda: flat(10_000, 10_000)),
    "PNG bomb of 60,000 x 60,000 without pixels": ("listed", lambda: png(60_000, 60_000)),
    "PNG of 2**31-1 x 2**31-1": ("listed", lambda: png(2**31 - 1, 2**31 - 1)),
    "PNG of no width": ("listed", lambda: png(0, 5)),
    "PNG of 20,000 x 1": ("listed", lambda: flat(20_000, 1)),
    "PNG of 1 x 20,000": ("listed", lambda: flat(1, 20_000)),
    "PNG of 1 x 1": ("accepted", lambda: flat(1, 1)),
    "PNG of 3000 x 3000 in some bytes": ("accepted", lambda: flat(3000, 3000)),
    "PNG zTXt bomb of 16 MB": ("listed", lambda: small(inflated(b"zTXt", 1 << 24))),
    "PNG iTXt bomb of 16 MB": ("listed", lambda: small(inflated(b"iTXt", 1 << 24))),
    "PNG iCCP bomb of 16 MB": ("listed", lambda: small(inflated(b"iCCP", 1 << 24))),
    "PNG of 20,000 text chunks": ("accepted", lambda: small(chunk(b"tEXt", b"k\0v") * 20_000)),
    "PNG of 100 zTXt chunks of 1 MB": ("listed", lambda: small(inflated(b"zTXt", 1 << 20) * 100)),
    "PNG chunk that claims 2 GB": ("listed", lambda: small(chunk(b"tEXt", b"k\0v", 2**31 - 1))),
    "PNG with wrong check sums": ("listed", lambda: small()[:29] + b"\0\0\0\0" + small()[33:]),
    "PNG whose pixels go on for 30 MB": (
        "accepted",
        lambda: png(2, 2, data=zlib.compress(bytes(30 << 20), 9)),
    ),
    "PNG whose pixels are no deflate stream": ("listed", lambda: png(2, 2, data=b"\xff" * 50)),
    "PNG without pixels": ("listed", lambda: png(2, 2)),
    "PNG of an unknown colour type": ("listed", lambda: png(2, 2, colour=7, data=zlib.compress(bytes(14)))),
    "PNG of 99 bits": ("listed", lambda: png(2, 2, depth=99, data=zlib.compress(bytes(14)))),
    "PNG palette without its colours": (
        "listed",
        lambda: png(2, 2, colour=3, data=zlib.compress(b"\0\5\5\0\5\5")),
    ),
    "PNG in 2,000,000 animation frames": (
        "accepted",
        lambda: small(chunk(b"acTL", struct.pack(">II", 2_000_000, 0))),
    ),
    "GIF of 100,000 frames": ("accepted", lambda: gif_of_many_frames(100_000)),
    "GIF of 65,535 x 65,535": (
        "listed",
        lambda: b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b";",
    ),
    "GIF whose frame leaves its screen": (
        "listed",
        lambda: (
            b"GIF89a"
            + struct.pack("<HHBBB", 2, 2, 0x80, 0, 0)
            + b"\0" * 6
            + b","
            + struct.pack("<HHHHB", 60_000, 60_000, 60_000, 60_000, 0)
            + b"\2\3\x84\x8f\5\0;"
        ),
    ),
    "GIF comment that never ends": (
        "listed",
        lambda: b"GIF89a" + struct.pack("<HHBBB", 2, 2, 0, 0, 0) + b"!\xfe" + b"\xffx" * 50_000,
    ),
    "TIFF of 300 pages": ("accepted", lambda: many_pages(300)),
    "TIFF whose directories go round": ("listed", lambda: tiff_size(4, 4, after=8)),
    "TIFF of 2**32-1 x 1": ("listed", lambda: tiff_size(2**32 - 1, 1)),
    "TIFF of 65,000 x 65,000": ("listed", lambda: tiff_size(65_000, 65_000)),
    "TIFF without pixels": ("listed", lambda: tiff_size(16, 16)),
    "TIFF tag that claims 4 GB": ("listed", lambda: tiff([(270, 2, 2**32 - 1, 8)])),
    "TIFF of 65,535 tags": ("listed", lambda: tiff([(270, 2, 1, 0)] * 65_535)),
    "TIFF of an unknown compression": (
        "listed",
        lambda: tiff([(256, 4, 1, 4), (257, 4, 1, 4), (259, 3, 1, 59_999), (273, 4, 1, 8), (279, 4, 1, 9)]),
    ),
    "BMP of minus two thousand million lines": (
        "listed",
        lambda: b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, 4, -(2**31), 1, 24, 0, 0, 0, 0, 0, 0),
    ),
    "BMP whose runs leave the picture": (
        "accepted",
        lambda: (
            b"BM"
            + struct.pack("<IIIIiiHHIIIIII", 70, 0, 54, 40, 4, 4, 1, 8, 1, 9, 0, 0, 256, 0)
            + bytes(1024)
            + b"\xff\1" * 3
            + b"\0\2\xff\xff"
        ),
    ),
    "PPM of a thousand million pixels": ("listed", lambda: b"P6 40000 40000 255\n"),
    "PPM of a number without end": ("listed", lambda: b"P6 " + b"9" * 100_000),
    "PPM of a comment without end": ("listed", lambda: b"P6 #" + b"x" * 1_000_000),
    "PPM that claims more than it holds": ("listed", lambda: b"P6 100 100 255\n" + bytes(50)),
    "JPEG of 65,535 x 65,535": (
        "listed",
        lambda: b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 11, 8, 65_535, 65_535, 1) + b"\1\x11\0\xff\xd9",
    ),
    "JPEG of no lines": (
        "listed",
        lambda: b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 11, 8, 0, 16, 1) + b"\1\x11\0\xff\xd9",
    ),
    "JPEG of markers only": ("listed", lambda: b"\xff\xd8" + b"\xff" * 1_000_000),
    "JPEG with a profile in 255 parts": (
        "accepted",
        lambda: _with_segments([b"ICC_PROFILE\0" + bytes((n, 255)) + b"x" * 100 for n in range(1, 256)]),
    ),
    "JPEG whose EXIF goes round": (
        "accepted",
        lambda: _with_segments(
            [b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x8769, 4, 1, 8, 8)], 1
        ),
    ),
    "JPEG with a wrong EXIF orientation": ("accepted", lambda: turned(9)),
    "JPEG in CMYK": ("accepted", lambda: mode("CMYK", "JPEG")),
    "JPEG in grey": ("accepted", lambda: mode("L", "JPEG")),
    "TIFF in CMYK": ("accepted", lambda: mode("CMYK", "TIFF")),
    "TIFF in BenchmarkPaths": ("accepted", lambda: encoded(Image.new("LAB", (4, 4)), "TIFF")),
    "PNG in 16 bits": ("accepted", lambda: deep(np.uint16, "PNG")),
    "TIFF in 16 bits": ("accepted", lambda: deep(np.uint16, "TIFF")),
    "TIFF in 32 bits": ("accepted", lambda: deep(np.int32, "TIFF")),
    "TIFF in floats": ("accepted", lambda: deep(np.float32, "TIFF")),
    "TIFF of NaN": (
        "accepted",
        lambda: encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"),
    ),
    "PNG with a palette": ("accepted", lambda: mode("P", "PNG")),
    "PNG with alpha": ("accepted", lambda: mode("RGBA", "PNG")),
    "PNG in one bit": ("accepted", lambda: mode("1", "PNG")),
    "WebP with alpha": ("accepted", lambda: mode("RGBA", "WEBP")),
    "WebP that claims 4 GB": ("listed", lambda: b"RIFF\xff\xff\xff\xffWEBPVP8L" + bytes(20)),
    "JPEG 2000 of 2**31 x 2**31": (
        "listed",
        lambda: (
            b"\xff\x4f\xff\x51"
            + struct.pack(">HHIIIIIIIIH", 41, 0, 2**31, 2**31, 0, 0, 9, 9, 0, 0, 1)
            + b"\7\1\1"
        ),
    ),
    "AVIF without its pictures": ("listed", lambda: b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf"),
}


def _with_segments(contents: list[bytes], kind: int = 2) -> bytes:
    """Return a sound JPEG with application segments in front."""
    sound = mode("RGB", "JPEG")
    parts = [b"\xff" + bytes((0xE0 + kind,)) + struct.pack(">H", len(c) + 2) + c for c in contents]
    return sound[:2] + b"".join(parts) + sound[2:]


def torn(kind: str, share: float) -> bytes:
    """Return the beginning of a sound file."""
    file = encoded(Image.fromarray(pixels(64, 64)), kind)
    return file[: int(len(file) * share)]


def garbled(kind: str) -> bytes:
    """Return a sound file with noise in its middle."""
    file = bytearray(encoded(Image.fromarray(pixels(64, 64)), kind))
    middle = slice(len(file) // 3, 2 * len(file) // 3)
    file[middle] = np.random.default_rng(0).bytes(len(file[middle]))
    return bytes(file)


def among_good(make: Callable[[Path], bytes], suffix: str = ".png") -> Callable[[Path], Path]:
    """Return what writes sound images and one more file."""

    def write(root: Path) -> Path:
        good_folder(root)
        (root / "dog" / f"hostile{suffix}").write_bytes(make(root))
        return root

    return write


def image_cases() -> Iterator[Case]:
    """Return the cases."""
    for name, (expected, content) in FILES.items():
        yield Case(name=f"image: {name}", expected=expected, make=among_good(lambda _, make=content: make()))
    for kind in CODECS:
        for share in (0.02, 0.5):
            yield Case(
                name=f"image: {kind} cut after {share:.0%}",
                expected="listed",
                make=among_good(lambda _, kind=kind, share=share: torn(kind, share)),
            )
    for kind in ("BMP", "PPM", "TIFF"):
        yield Case(
            name=f"image: {kind} with noise in its middle",
            expected="accepted",
            make=among_good(lambda _, kind=kind: garbled(kind)),
        )
    for orientation in range(1, 9):
        yield Case(
            name=f"image: JPEG held as {orientation}",
            expected="accepted",
            make=among_good(lambda _, orientation=orientation: turned(orientation), ".jpg"),
        )
    yield Case(name="image: a pickle called PNG", expected="listed", make=among_good(trap))
    yield Case(
        name="image: a pickle behind a sound PNG",
        expected="accepted",
        make=among_good(lambda root: good() + trap(root)),
    )
    yield Case(
        name="image: more bytes than the limit",
        expected="listed",
        make=among_good(lambda _: good() + bytes(100_000)),
        limits=(("file_bytes", 50_000),),
    )
