"""Hostile image folders and lists of class names."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from hostile.case import Case, Outcome, good, good_folder, trap

ODD_NAMES = {
    "a line break": "a\nb",
    "quotes": "'\"`a",
    "markup": "<script>alert(1)<",
    "a right-to-left mark": "gnp.\u202egpj",
    "an escape sequence": "\x1b[2J\x1b]0;owned\x07",
    "a format": "{0.__class__}%s%n$(touch executed)",
    "a formula": "=cmd|' C calc'!A0",
    "255 bytes": "n" * 251,
    "a byte order mark": "\ufeffa",
    "only blanks": "  ",
    "no valid UTF-8": "\udcff\udcfe",
}


def _named(name: str) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        good_folder(root)
        (root / "cat" / f"{name}.png").write_bytes(good())
        return root

    return make


def _class_named(name: str) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        good_folder(root)
        (root / name).mkdir()
        (root / name / "1.png").write_bytes(good())
        return root

    return make


def _linked(target: str, directory: str = "cat/9.png") -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        good_folder(root / "data")
        good_folder(root / "outside")
        (root / "data" / directory).symlink_to(target.format(root=root))
        return root / "data"

    return make


def _pipe(root: Path) -> Path:
    os.mkfifo(good_folder(root) / "cat" / "9.png")
    return root


def _socket(root: Path) -> Path:
    good_folder(root)
    # By a relative path, since that of a socket may have 108 bytes only.
    here = os.getcwd()
    os.chdir(root / "cat")
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("9.png")
    finally:
        os.chdir(here)
    return root


def _unreadable(root: Path) -> Path:
    (good_folder(root) / "cat" / "9.png").mkdir()
    return root


def _deep(root: Path) -> Path:
    """Nest folders as deep as the standard library can still remove."""
    good_folder(root)
    path = os.fspath(root / "cat")
    while len(path) < 1000:
        path += "/d"
        os.mkdir(path)
    Path(path, "1.png").write_bytes(good())
    return root


def _many(root: Path) -> Path:
    good_folder(root)
    for number in range(1000):
        (root / "cat" / f"m{number}.png").touch()
    return root


def _loop(root: Path) -> Path:
    (good_folder(root) / "cat" / "round").symlink_to(root / "cat", target_is_directory=True)
    return root


def _names(name: str, content: bytes) -> Callable[[Path], tuple[Path, Path]]:
    def make(root: Path) -> tuple[Path, Path]:
        good_folder(root / "data")
        (root / name).write_bytes(content)
        return root / "data", root / name

    return make


def _trapped_names(root: Path) -> tuple[Path, Path]:
    return _names("names.txt", trap(root))(root)


def _names_pipe(root: Path) -> tuple[Path, Path]:
    good_folder(root / "data")
    os.mkfifo(root / "names.txt")
    return root / "data", root / "names.txt"


FOLDERS: dict[str, tuple[Outcome, Callable[[Path], Path]]] = {
    "a link to a file outside": ("listed", _linked("{root}/outside/dog/01.png")),
    "a link to /etc/passwd": ("listed", _linked("/etc/passwd")),
    "a link to a device that never ends": ("listed", _linked("/dev/zero")),
    "a link that goes nowhere": ("listed", _linked("{root}/data/cat/none.png")),
    "a link to itself": ("listed", _linked("{root}/data/cat/9.png")),
    "a link inside the folder": ("accepted", _linked("{root}/data/dog/01.png")),
    "a class that is a link to outside": ("refused", _linked("{root}/outside/dog", "eel")),
    "a class that is a link to the root": ("refused", _linked("/", "eel")),
    "a folder that is a link to itself": ("accepted", _loop),
    "a pipe": ("listed", _pipe),
    "a socket": ("listed", _socket),
    "a folder called like an image": ("accepted", _unreadable),
    "folders nested 450 deep": ("accepted", _deep),
    "1,000 empty files": ("refused", _many),
}

NAMES: dict[str, tuple[str, bytes]] = {
    "not UTF-8": ("names.txt", b"\xff\xfe"),
    "empty": ("names.txt", b""),
    "a blank line among them": ("names.txt", b"cat\n\n\ndog"),
    "a name of 10,000 letters": ("names.txt", b"cat\n" + b"d" * 10_000),
    "100,000 names": ("names.txt", b"x\n" * 100_000),
    "JSON nested too deep": ("names.json", b"[" * 500_000),
    "JSON objects nested too deep": ("names.json", b'{"a":' * 500_000),
    "JSON larger than the limit": ("names.json", b"[" + b'"a",' * (5 << 20) + b'"a"]'),
    "JSON of a number with 1,000,000 digits": ("names.json", b"[" + b"9" * 1_000_000 + b"]"),
    "JSON of NaN": ("names.json", b"[NaN, Infinity]"),
    "JSON with null names": ("names.json", b'["cat", null]'),
    "JSON cut short": ("names.json", b'["cat", "do'),
    "JSON object of wrong keys": ("names.json", json.dumps({"__proto__": "a", "1e0": "b"}).encode()),
    "another number of names": ("names.txt", b"cat\ndog\nemu"),
}


def folder_cases() -> Iterator[Case]:
    """Return the cases."""
    for what, name in ODD_NAMES.items():
        yield Case(name=f"folder: a file name with {what}", expected="accepted", make=_named(name))
        blank = what == "only blanks"
        yield Case(
            name=f"folder: a class name with {what}",
            expected="accepted",
            make=_class_named(name if not blank else " "),
        )
    for what, (expected, make) in FOLDERS.items():
        yield Case(name=f"folder: {what}", expected=expected, make=make)
    yield Case(
        name="folder: more files than the limit",
        expected="refused",
        make=good_folder,
        limits=(("members", 10),),
    )
    for what, (file, content) in NAMES.items():
        make_names = _names(file, content)
        yield Case(name=f"names: {what}", expected="refused", make=make_names, reader="names")
    yield Case(name="names: a pickle", expected="refused", make=_trapped_names, reader="names")
    yield Case(name="names: a pipe", expected="refused", make=_names_pipe, reader="names")
