"""Provenance: which files were read, with which contents, and whether they still are what they were."""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int64, UInt8

from clipguard.data import Failed, ImageSource, Item
from clipguard.data.folder import FolderReader, list_folder
from clipguard.data.listing import Reader, printable
from clipguard.errors import ClipguardError
from clipguard.runs import Checked, compared, described, read_json, read_table, write_json, write_table
from clipguard.safety.limits import Limits

INPUTS: Final = "inputs.parquet"
ABOUT: Final = "inputs.json"

_UNREAD: Final = -1


@dataclass(frozen=True, slots=True, eq=False)
class HashingReader:
    """A reader that hashes every image file as it passes and lets none pass that differs the second time.

    A run reads its data twice, for the fingerprint and for the pixels: in between, a file may be exchanged.

    Attributes:
        reader: what fetches the images.
        sizes: bytes of each row, -1 for one that has not been read.
        digests: sha256 of each row.
        dates: size and date of each file that holds many images, as they were in the beginning.
    """

    reader: Reader
    sizes: Int64[np.ndarray, "n"]
    digests: UInt8[np.ndarray, "n 32"]
    dates: dict[Path, tuple[int, int]]

    def read(self, rows: Int64[np.ndarray, "m"]) -> Iterator[Item]:
        """Return the items; one that is not what it was becomes `Failed`."""
        for row, item in zip(rows.tolist(), self.reader.read(rows), strict=True):
            yield self._hashed(row, item)

    def _hashed(self, row: int, item: Item) -> Item:
        if not isinstance(item, (bytes, Failed)):
            return item  # it is in memory already
        content = item if isinstance(item, bytes) else b""
        # A file that could not be read gets the hash of nothing that can be read later.
        digest = hashlib.sha256(content).digest() if isinstance(item, bytes) else bytes(32)
        if self.sizes[row] == _UNREAD:
            self.sizes[row], self.digests[row] = len(content), np.frombuffer(digest, np.uint8)
        elif isinstance(item, bytes) and self.digests[row].tobytes() != digest:
            return Failed("changed while the data set was being read")
        return item


def hashing(source: ImageSource) -> ImageSource:
    """Return the same source; reading it is what hashes its files."""
    if isinstance(source.reader, HashingReader):
        return source
    count = int(source.rows[-1]) + 1
    return replace(
        source,
        reader=HashingReader(
            reader=source.reader,
            sizes=np.full(count, _UNREAD, dtype=np.int64),
            digests=np.zeros((count, 32), dtype=np.uint8),
            dates={file: _date(file) for file in _containers(source)},
        ),
    )


def write_inputs(source: ImageSource, folder: Path) -> None:
    """Write path, size and sha256 of every file that the source was read from into `folder`.

    Of an image folder, each image, hashed as it was read; of anything else, each file that holds images.
    What has no file, such as arrays in memory, leaves an empty list: its fingerprint is in the manifest.

    Raises:
        ClipguardError: a file changed while it was being read.
    """
    source = hashing(source)
    reader = source.reader
    assert isinstance(reader, HashingReader)
    if isinstance(reader.reader, FolderReader):
        columns = _folder_columns(source, reader, reader.reader)
        whole = len(source) == len(reader.reader.paths)
    else:
        columns, whole = _container_columns(reader), True
    write_table(folder / INPUTS, columns)
    kind = "folder" if isinstance(reader.reader, FolderReader) else "files"
    about = {
        "kind": kind,
        "whole": whole,
        "files": len(columns["path"]),
        "bytes": int(columns["bytes"].sum()),
        "limits": asdict(source.limits),
    }
    write_json(folder / ABOUT, about)


def _folder_columns(source: ImageSource, reader: HashingReader, files: FolderReader) -> dict[str, Any]:
    unread = np.flatnonzero(reader.sizes[source.rows] == _UNREAD)
    for _ in source.read(unread):
        pass
    digests = [reader.digests[row].tobytes().hex() for row in source.rows]
    return {
        "path": [printable(files.paths[row]) for row in source.rows],
        "bytes": reader.sizes[source.rows],
        "sha256": digests,
    }


def _container_columns(reader: HashingReader) -> dict[str, Any]:
    entries = {file: described(file) for file in sorted(reader.dates)}
    for file, date in reader.dates.items():
        if _date(file) != date:
            raise ClipguardError(f"{file} changed while it was being read: run again when it stays as it is")
    return {
        "path": [printable(file.name) for file in entries],
        "bytes": np.array([entry["bytes"] for entry in entries.values()], dtype=np.int64),
        "sha256": [entry["sha256"] for entry in entries.values()],
    }


def _containers(source: ImageSource) -> list[Path]:
    """Return the files that hold many images each."""
    if isinstance(source.reader, FolderReader):
        return []
    files = getattr(source.reader, "files", None)
    if files is not None:
        return [Path(file) for file in files]
    # An .npz file is read into arrays at once, so that only the location still names it.
    whole = Path(source.location)
    return [whole] if whole.suffix and whole.is_file() else []


def _date(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def check_inputs(run: Path, data: Path) -> list[Checked]:
    """Return what became of each file that the run read, now looked for in or at `data`, by the run's limits.

    Raises:
        ClipguardError: the run has no list of its inputs, read no files, or `data` cannot be listed.
    """
    folder = run / "stages" / "read"
    if not (folder / INPUTS).is_file():
        raise ClipguardError(f"run folder {run} has no list of its inputs: its scan is not finished")
    inputs, about = read_table(folder / INPUTS), read_json(folder / ABOUT)
    try:
        whole, limits = bool(about["whole"]), Limits(**about["limits"])
        columns = [inputs[name] for name in ("path", "bytes", "sha256")]
    except (LookupError, TypeError) as error:
        raise ClipguardError(
            f"run folder {run} has a damaged list of its inputs: run again in a new folder"
        ) from error
    if not len(columns[0]):
        raise ClipguardError(
            f"run folder {run} was read from no file: there is nothing to compare {data} with"
        )
    if not data.exists():
        raise ClipguardError(f"{data} does not exist: give the data that the run was made of")
    files = _files(data, about.get("kind") == "folder", limits)
    checks = []
    for path, size, digest in zip(*columns, strict=True):
        entry = {"bytes": size, "sha256": str(digest)}
        checks.append(compared(str(path), files.pop(str(path), data / str(path)), entry))
    extra = sorted(files) if whole else []
    return checks + [Checked(path=path, status="added") for path in extra]


def _files(data: Path, images: bool, limits: Limits) -> dict[str, Path]:
    """Return the files at or in `data` that a run would read, by the paths that a run gives them."""
    if data.is_file():
        return {printable(data.name): data}
    if images:
        # Of readers only a folder's has paths, and the listing of a folder has no other.
        paths = list_folder(data, limits).reader.paths  # type: ignore[attr-defined]  # a FolderReader
        return {printable(path): data / path for path in paths}
    files = sorted([*data.glob("*.parquet"), *data.glob("*.tar")])
    return {printable(path.name): path for path in files if path.name[0] != "."}
