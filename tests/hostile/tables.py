"""Hostile Parquet and .npz files."""

import io
import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hostile.case import Case, Outcome, good, trap

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
NAMES = ("cat", "dog")


def _metadata(names: Any) -> dict[str, str]:
    return {"huggingface": json.dumps({"info": {"features": {"label": {"names": names}}}})}


def _rows(last: Any, path: Any = "x.png", count: int = 12) -> pa.Array:
    """Return sound images and one more cell."""
    rows = [{"bytes": good(row), "path": f"{row}.png"} for row in range(count - 1)]
    return pa.array([*rows, {"bytes": last, "path": path}], IMAGE)


def _written(table: pa.Table, metadata: dict[str, str] | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    named = table.replace_schema_metadata(_metadata(list(NAMES)) if metadata is None else metadata)
    pq.write_table(named, buffer, **options)
    return buffer.getvalue()


def _table(last: Any, path: Any = "x.png", labels: Any = None, **options: Any) -> bytes:
    image = _rows(last, path)
    given = pa.array([row % 2 for row in range(len(image))], pa.int64()) if labels is None else labels
    return _written(pa.table({"image": image, "label": given}), **options)


def whole_table() -> bytes:
    """Return a Parquet file in which nothing is wrong."""
    return _table(good())


def _labels(values: list[Any], kind: pa.DataType) -> bytes:
    return _table(good(), labels=pa.array((values * 12)[:12], kind))


def _columns(**columns: Any) -> bytes:
    return _written(pa.table(columns))


def _twice(name: str) -> bytes:
    image, label = _rows(good()), pa.array([0, 1] * 6)
    columns = {"image": image, "label": label}
    return _written(pa.Table.from_arrays([image, label, columns[name]], ["image", "label", name]))


def _invalid_text() -> pa.Array:
    """Return images whose paths are no UTF-8, which Arrow does not check."""
    raw = pa.array([b"\xff\xfe"] * 12).view(pa.string())
    return pa.StructArray.from_arrays([pa.array([good()] * 12), raw], ["bytes", "path"])


def _footer(size: int) -> bytes:
    return _table(good())[:-8] + struct.pack("<I", size) + b"PAR1"


def _noise_in_footer() -> bytes:
    content = bytearray(_table(good()))
    content[-300:-100] = np.random.default_rng(0).bytes(200)
    return bytes(content)


def _noise_in_pages() -> bytes:
    content = bytearray(_table(good(), compression="zstd"))
    content[40:400] = np.random.default_rng(0).bytes(360)
    return bytes(content)


PARQUET: dict[str, tuple[Outcome, Callable[[], bytes]]] = {
    "empty": ("refused", lambda: b""),
    "its mark alone": ("refused", lambda: b"PAR1PAR1"),
    "cut in the middle": ("refused", lambda: _table(good())[:2000]),
    "a footer that claims 4 GB": ("refused", lambda: _footer(2**32 - 1)),
    "a footer of no bytes": ("refused", lambda: _footer(0)),
    "noise in the footer": ("refused", _noise_in_footer),
    "noise in the pages": ("refused", _noise_in_pages),
    "no rows": ("refused", lambda: _columns(image=pa.array([], IMAGE), label=pa.array([], pa.int64()))),
    "null image": ("listed", lambda: _table(None)),
    "empty image": ("listed", lambda: _table(b"")),
    "null struct": (
        "listed",
        lambda: _columns(
            image=pa.array([{"bytes": good(), "path": "a"}] * 11 + [None], IMAGE), label=pa.array([0, 1] * 6)
        ),
    ),
    "a cell of 140 MB of zeros": ("listed", lambda: _table(bytes(120 << 20), compression="zstd")),
    "a path to a file of the system": ("listed", lambda: _table(None, "/etc/passwd")),
    "a path of 1 MB": ("accepted", lambda: _table(good(), "p" * (1 << 20))),
    "a path with markup and a line break": ("accepted", lambda: _table(good(), "<script>\n\u202e")),
    "paths that are no UTF-8": (
        "refused",
        lambda: _columns(image=_invalid_text(), label=pa.array([0, 1] * 6)),
    ),
    "null labels": ("refused", lambda: _labels([0, None], pa.int64())),
    "labels beyond 64 bits": ("refused", lambda: _labels([0, 2**64 - 1], pa.uint64())),
    "negative labels": ("refused", lambda: _labels([0, -1], pa.int8())),
    "labels as text": ("accepted", lambda: _labels(["0", "1"], pa.string())),
    "labels as whole floats": ("accepted", lambda: _labels([0.0, 1.0], pa.float64())),
    "labels as fractions": ("refused", lambda: _labels([0.0, 0.5], pa.float64())),
    "labels as infinity": ("refused", lambda: _labels([0.0, float("inf")], pa.float64())),
    "labels as truth values": ("accepted", lambda: _labels([True, False], pa.bool_())),
    "labels as lists": ("refused", lambda: _labels([[0], [1]], pa.list_(pa.int64()))),
    "labels as a dictionary": (
        "accepted",
        lambda: _table(good(), labels=pa.array(["a", "b"] * 6).dictionary_encode()),
    ),
    "labels as dates": ("refused", lambda: _labels([0, 1], pa.date32())),
    "images as text": ("refused", lambda: _columns(image=["a"] * 4, label=[0, 1] * 2)),
    "images as bare bytes": ("accepted", lambda: _columns(image=[good()] * 4, label=[0, 1] * 2)),
    "images as lists": ("refused", lambda: _columns(image=[[good()]] * 4, label=[0, 1] * 2)),
    "no image column": ("refused", lambda: _columns(label=[0, 1])),
    "no label column": ("refused", lambda: _columns(image=_rows(good()))),
    "two label columns": ("refused", lambda: _twice("label")),
    "two image columns": ("refused", lambda: _twice("image")),
    "names nested too deep": (
        "refused",
        lambda: _table(good(), metadata={"huggingface": "[" * 200_000}),
    ),
    "names of another type": ("refused", lambda: _table(good(), metadata=_metadata({"a": 1}))),
    "100,000 names": ("refused", lambda: _table(good(), metadata=_metadata(["x"] * 100_000))),
    "a name of 100,000 letters": (
        "refused",
        lambda: _table(good(), metadata=_metadata(["x" * 100_000, "b"])),
    ),
    "names with markup and control marks": (
        "accepted",
        lambda: _table(good(), metadata=_metadata(["<script>\n\u202e", "\x1b[2J"])),
    ),
    "fewer names than labels": ("refused", lambda: _table(good(), metadata=_metadata(["cat"]))),
    "metadata of 20 MB": ("refused", lambda: _table(good(), metadata={"huggingface": " " * (20 << 20)})),
    "2,000 columns": (
        "accepted",
        lambda: _columns(image=_rows(good()), label=[0, 1] * 6, **{f"c{n}": [0] * 12 for n in range(2000)}),
    ),
    "a footer that claims other rows": ("refused", lambda: _lying_rows()),
}


def _lying_rows() -> bytes:
    """Return a file whose footer claims a million rows more than it has.

    12 is the zigzag varint 0x18 in Thrift's compact encoding, behind a field header of type i64 (0x16).
    """
    content = _table(good())
    size = struct.unpack("<I", content[-8:-4])[0]
    footer = content[-8 - size : -8].replace(b"\x16\x18", b"\x16\xb0\x88\x7a")
    return content[: -8 - size] + footer + struct.pack("<I", len(footer)) + b"PAR1"


def npy(header: str, content: bytes = b"", version: bytes = b"\1\0") -> bytes:
    """Return an array file by hand."""
    text = header.encode()
    length = struct.pack("<H", len(text)) if version == b"\1\0" else struct.pack("<I", len(text))
    return b"\x93NUMPY" + version + length + text + content


def _array(values: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values), allow_pickle=False)
    return buffer.getvalue()


def _described(descr: str, shape: str, content: bytes = b"") -> bytes:
    return npy(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n", content)


IMAGES = _array(np.zeros((4, 8, 8, 3), np.uint8))
LABELS = _array(np.array([0, 1, 0, 1]))
CLASSES = _array(np.array(NAMES))


def zipped(**parts: bytes) -> bytes:
    """Return an archive of arrays, some of them not the sound ones."""
    content = {"images": IMAGES, "labels": LABELS, "class_names": CLASSES, **parts}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in content.items():
            archive.writestr(f"{name}.npy", part)
    return buffer.getvalue()


def _npz(root: Path, **parts: bytes) -> Path:
    (root / "x.npz").write_bytes(zipped(**parts))
    return root / "x.npz"


OBJECTS = "'|O'"
NPZ: dict[str, dict[str, bytes]] = {
    "a header of 10**18 images": {"images": _described("'|u1'", "(1000000000000000000, 8, 8, 3)")},
    "a header of a negative shape": {"images": _described("'|u1'", "(-4, 8, 8, 3)", bytes(768))},
    "a header of more than there is": {"images": _described("'|u1'", "(5, 8, 8, 3)", bytes(768))},
    "a header nested too deep": {"images": npy("(" * 9000)},
    "a header of 60,000 letters": {"images": npy(" " * 60_000)},
    "a header that calls a function": {"images": npy("__import__('os').system('touch executed')")},
    "a header without a shape": {"images": npy("{'descr': '|u1'}")},
    "a header of an unknown version": {"images": npy("{}", version=b"\x63\0")},
    "a huge text type": {"class_names": _described("'<U2000000000'", "(2,)")},
    "images as fractions": {"images": _array(np.zeros((4, 8, 8, 3)))},
    "images as complex numbers": {"images": _array(np.zeros((4, 8, 8, 3), np.complex128))},
    "labels as texts beside names": {"labels": _array(np.array(["cat", "dog", "cat", "dog"]))},
    "labels as dates": {"labels": _array(np.zeros(4, "M8[s]"))},
    "names as bytes": {"class_names": _array(np.array([b"a", b"b"]))},
    "names in two dimensions": {"class_names": _array(np.array([["a", "b"]]))},
    "fields instead of numbers": {"labels": _array(np.zeros(4, [("a", "i4")]))},
    "no bytes": {"images": b""},
    "an array that unpacks to 30 MB": {"images": _array(np.zeros((10_000, 32, 32, 3), np.uint8))},
    "fewer labels than images": {"labels": _array(np.array([0, 1]))},
}


def _encrypted(root: Path) -> Path:
    """Set the flag of encryption in the local and the central headers."""
    path = _npz(root)
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = content.find(mark)
        while start >= 0:
            content[start + place] |= 1
            start = content.find(mark, start + 4)
    path.write_bytes(content)
    return path


def _lying_zip(root: Path) -> Path:
    """Let the directory of the archive claim 4 GB less two bytes for each file."""
    path = _npz(root)
    content = bytearray(path.read_bytes())
    start = content.find(b"PK\1\2")
    while start >= 0:
        content[start + 24 : start + 28] = struct.pack("<I", 2**32 - 2)
        start = content.find(b"PK\1\2", start + 4)
    path.write_bytes(content)
    return path


def _in_file(name: str, content: Callable[[Path], bytes]) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        (root / name).write_bytes(content(root))
        return root / name

    return make


def table_cases() -> Iterator[Case]:
    """Return the cases."""
    for what, (expected, content) in PARQUET.items():
        yield Case(
            name=f"parquet: {what}",
            expected=expected,
            make=_in_file("x.parquet", lambda _, content=content: content()),
        )
    yield Case(
        name="parquet: a pickle in a cell",
        expected="listed",
        make=_in_file("x.parquet", lambda root: _table(trap(root))),
    )
    yield Case(name="parquet: a pickle", expected="refused", make=_in_file("x.parquet", trap))
    for what, parts in NPZ.items():
        yield Case(
            name=f"npz: {what}",
            expected="refused",
            make=lambda root, parts=parts: _npz(root, **parts),
            limits=(("array_bytes", 10 << 20),),
        )
    for kind in ("images", "labels", "class_names"):
        yield Case(
            name=f"npz: {kind} as pickled objects",
            expected="refused",
            make=lambda root, kind=kind: _npz(root, **{kind: _described(OBJECTS, "(4,)", trap(root))}),
        )
    yield Case(
        name="npz: a pickled array that nobody asks for",
        expected="accepted",
        make=lambda root: _npz(root, other=_described(OBJECTS, "(4,)", trap(root))),
    )
    yield Case(
        name="npz: images of 2,000 x 1",
        expected="refused",
        make=lambda root: _npz(root, images=_array(np.zeros((4, 2000, 1, 3), np.uint8))),
    )
    yield Case(name="npz: a pickle", expected="refused", make=_in_file("x.npz", trap))
    yield Case(name="npz: one bare array", expected="refused", make=_in_file("x.npz", lambda _: IMAGES))
    yield Case(name="npz: encrypted", expected="refused", make=_encrypted)
    yield Case(name="npz: a directory that lies about sizes", expected="refused", make=_lying_zip)
    yield Case(name="npy: a bare array", expected="refused", make=_in_file("x.npy", lambda _: IMAGES))
    yield Case(
        name="npy: pickled objects",
        expected="refused",
        make=_in_file("x.npy", lambda root: _described(OBJECTS, "(4,)", trap(root))),
    )
