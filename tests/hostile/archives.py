"""Hostile tar shards."""

import gzip
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from hostile.case import Case, good, trap
from tar_files import add_special, header, samples, tar_bytes, write_tar

END = bytes(1024)


def _with(files: dict[str, bytes]) -> Callable[[Path], Path]:
    return lambda root: write_tar(root / "x.tar", {**samples(12), **files})


def _raw(content: bytes) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        (root / "x.tar").write_bytes(content)
        return root / "x.tar"

    return make


def _special(kind: bytes) -> Callable[[Path], Path]:
    return lambda root: add_special(write_tar(root / "x.tar", samples(12)), "0099.png", kind)


def _cut(root: Path) -> Path:
    path = write_tar(root / "x.tar", samples(12))
    path.write_bytes(path.read_bytes()[:-14_000])
    return path


def _zipped(root: Path) -> Path:
    path = write_tar(root / "x.tar", samples(12))
    path.write_bytes(gzip.compress(path.read_bytes()))
    return path


def _mixed(root: Path) -> Path:
    write_tar(root / "train-0.tar", samples(4))
    write_tar(root / "val-0.tar", samples(4))
    return root


def _absent(root: Path) -> Path:
    write_tar(root / "a-0.tar", samples(4))
    return root / "a-{0..3}.tar"


LISTED = {
    "a name that climbs": {"../../0099.png": good()},
    "an absolute name": {"/tmp/0099.png": good()},
    "a name that climbs by backslashes": {"..\\..\\0099.png": good()},
    "a name of 5,000 letters": {"n" * 5000 + ".png": good()},
    "an image that is none": {"0099.png": b"no image", "0099.cls": b"0"},
    "an empty image": {"0099.png": b"", "0099.cls": b"0"},
}
REFUSED = {
    "an image without label": {"0099.png": good()},
    "a label that is no number": {"0099.png": good(), "0099.cls": b"cat"},
    "a label of 1,000,000 digits": {"0099.png": good(), "0099.cls": b"9" * 1_000_000},
    "a label outside the names": {"0099.png": good(), "0099.cls": b"7"},
    "a label in JSON nested too deep": {"0099.png": good(), "0099.json": b"[" * 60_000},
    "a label in JSON that is a list": {"0099.png": good(), "0099.json": b'{"label": ["1"]}'},
    "two images of one key": {"0099.png": good(), "0099.jpg": good(), "0099.cls": b"0"},
}
PICKLED = ("pyd", "pkl", "pickle", "pth", "pt")
SPECIAL = {
    "a symbolic link": tarfile.SYMTYPE,
    "a hard link": tarfile.LNKTYPE,
    "a device": tarfile.CHRTYPE,
    "a disk": tarfile.BLKTYPE,
    "a pipe": tarfile.FIFOTYPE,
    "a sparse file": tarfile.GNUTYPE_SPARSE,
}
RAW = {
    "empty": b"",
    "nothing but its end": END,
    "no end": header(b"0.png", b"0\0"),
    "a size of 8 GB": header(b"0.png", b"77777777777\0") + END,
    "a negative size": header(b"0.png", b"\xff" * 12) + END,
    "a size of 2**88": header(b"0.png", b"\x80" + b"\xff" * 11) + END,
    "a size that is no number": header(b"0.png", b"99999999\0") + END,
    "a wrong check sum": header(b"0.png", b"0\0", checksum=b"000001\0 ") + END,
    "a pax header of 4 MB": header(b"x", b"20000000\0", b"x") + bytes(4 << 20) + END,
    "a pax record of no length": header(b"x", b"20\0", b"x") + b"0 path=a\n".ljust(512, b"\0") + END,
    "a pax record beyond its header": header(b"x", b"20\0", b"x") + b"999 a=b\n".ljust(512, b"\0") + END,
    "a pax size below zero": header(b"x", b"20\0", b"x")
    + b"11 size=-1\n".ljust(512, b"\0")
    + header(b"0.png", b"0\0")
    + END,
    "a pax header with two names": header(b"x", b"30\0", b"x")
    + b"12 path=abc\n12 path=abd\n".ljust(512, b"\0")
    + END,
    "a pax header for all": header(b"x", b"20\0", b"g") + b"12 path=abc\n".ljust(512, b"\0") + END,
    "1,000 pax headers in a row": (header(b"x", b"20\0", b"x") + b"12 path=abc\n".ljust(512, b"\0")) * 1000,
    "noise": bytes(range(256)) * 100,
}
NAMED = header(b"x", b"20\0", b"x") + b"12 path=abc\n".ljust(512, b"\0")
AMBIGUOUS = {
    "a folder with contents": header(b"d/", b"2000\0", b"5") + bytes(1024),
    "an old folder with contents": header(b"d/", b"2000\0", b"\0") + bytes(1024),
    "a symbolic link with contents": header(b"0.png", b"2000\0", b"2") + bytes(1024),
    "a sparse file whose map goes on": header(b"0.png", b"0\0", b"S", more={482: b"\1"}),
    "an entry that is named twice": NAMED * 2,
    "an entry named by Solaris and by GNU": header(b"x", b"20\0", b"X")
    + b"12 path=abc\n".ljust(512, b"\0")
    + header(b"x", b"20\0", b"L")
    + b"abd".ljust(512, b"\0"),
}
"""What other readers follow otherwise, and a sound archive after it: they might find what nobody scanned."""


def archive_cases() -> Iterator[Case]:
    """Return the cases."""
    names = ("cat", "dog")
    for what, files in LISTED.items():
        yield Case(name=f"tar: {what}", expected="listed", make=_with(files), classes=names)
    for what, files in REFUSED.items():
        yield Case(name=f"tar: {what}", expected="refused", make=_with(files), classes=names)
    for ending in PICKLED:
        yield Case(
            name=f"tar: a pickle called .{ending}",
            expected="listed",
            make=lambda root, ending=ending: _with({f"0099.{ending}": trap(root), "0099.cls": b"0"})(root),
            classes=names,
        )
    yield Case(
        name="tar: a pickle called .png",
        expected="listed",
        make=lambda root: _with({"0099.png": trap(root), "0099.cls": b"0"})(root),
        classes=names,
    )
    for what, kind in SPECIAL.items():
        yield Case(name=f"tar: {what}", expected="listed", make=_special(kind), classes=names)
    ambiguous = {what: content + tar_bytes(samples(12)) for what, content in AMBIGUOUS.items()}
    for what, content in (RAW | ambiguous).items():
        yield Case(name=f"tar: {what}", expected="refused", make=_raw(content), classes=names)
    for what, make in (
        ("cut short", _cut),
        ("compressed", _zipped),
        ("two splits in one folder", _mixed),
        ("a pattern with missing shards", _absent),
    ):
        yield Case(name=f"tar: {what}", expected="refused", make=make, classes=names)
    yield Case(name="tar: no class names", expected="refused", make=_with({}))
    yield Case(
        name="tar: more entries than the limit",
        expected="refused",
        make=_with({}),
        classes=names,
        limits=(("members", 20),),
    )
