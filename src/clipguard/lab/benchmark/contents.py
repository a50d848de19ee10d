"""What the files of a cell hold: a name may stand for other weights or images tomorrow."""

import functools
from hashlib import file_digest, sha256
from pathlib import Path

from clipguard.clip.loading import FOLDER_PREFIX
from clipguard.lab.benchmark.config import Cell
from clipguard.lab.benchmark.places import BenchmarkPaths


def contents_of(cell: Cell, paths: BenchmarkPaths, guided: bool) -> dict[str, str]:
    """Return a hash of each file, and of the guide's folder, that the cell names and that is there.

    A data set known by name lies in the folder of data sets. Of one in a folder of images nothing is hashed:
    the fingerprint of its rows tells it.

    Args:
        cell: whose files.
        paths: where they are looked for.
        guided: whether the guide has a part in what is computed.
    """
    beside, home = paths.beside, paths.data.absolute() / cell.data.name
    places = {
        "train": _place(beside, cell.data.train or home / "train.parquet"),
        "test": _place(beside, cell.data.test or home / "test.parquet"),
    }
    if cell.weights is not None:
        places["weights"] = _place(beside, cell.weights)
    hashes = {name: _hash_of_file(*_stamp(place)) for name, place in places.items() if place.is_file()}
    folder = _place(beside, cell.guide.name.removeprefix(FOLDER_PREFIX))
    if guided and cell.guide.name.startswith(FOLDER_PREFIX) and folder.is_dir():
        files = (file for file in sorted(folder.rglob("*")) if file.is_file())
        text = "\n".join(f"{file.relative_to(folder)} {_hash_of_file(*_stamp(file))}" for file in files)
        hashes["guide"] = sha256(text.encode()).hexdigest()
    return hashes


def _place(beside: Path, text: str | Path) -> Path:
    return beside / Path(text).expanduser()


def _stamp(file: Path) -> tuple[Path, int, int]:
    about = file.stat()
    return file, about.st_size, about.st_mtime_ns


@functools.cache
def _hash_of_file(file: Path, size: int, changed: int) -> str:
    """Return the sha256 of a file, read once for each size and time of its last change."""
    with file.open("rb") as opened:
        return file_digest(opened, "sha256").hexdigest()
