"""What was given -> the reader of its kind: paths, arrays, tables in memory, data set objects."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from clipguard.data.arrays import list_arrays, list_npz
from clipguard.data.columns import NO_COLUMNS, Columns, no_columns
from clipguard.data.folder import list_folder
from clipguard.data.hugging_face import list_datasets
from clipguard.data.listing import Listing
from clipguard.data.metadata import FILES
from clipguard.data.objects import list_pairs
from clipguard.data.parquet import list_parquet
from clipguard.data.shards import choose_files, files_like, shard_folder
from clipguard.data.tables import list_frame, list_mapping
from clipguard.data.tar import list_tar
from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits

KINDS: Final = "an image folder, a .parquet, .tar or .npz file, or a pattern such as data-{000..009}.tar"
_FRAMES: Final = ("pandas.", "polars.")


def listing_of(what: object, limits: Limits, columns: Columns) -> Listing:
    """Return what `what` holds, unchecked; see `ImageSource.open`.

    Raises:
        ClipguardError: it is no data set.
    """
    if isinstance(what, str) and not what.strip():
        raise ClipguardError(f"the path of the data set is empty: give {KINDS}")
    if isinstance(what, (str, Path)):
        return _path_listing(expanded(what), limits, columns)
    if isinstance(what, tuple) and len(what) == 2:
        no_columns(columns, "a pair of arrays")
        return list_arrays(*what)
    if isinstance(what, Mapping):
        return list_mapping(what, columns)
    return _object_listing(what, limits, columns)


def columns_of_test(path: Path, columns: Columns) -> Columns:
    """Return the columns of a test set: those of its training set, but for groups, which no test needs.

    Class folders without a table have none.
    """
    if path.is_dir() and shard_folder(path) is None and not any((path / name).is_file() for name in FILES):
        return NO_COLUMNS
    return replace(columns, group=None)


def _object_listing(what: Any, limits: Limits, columns: Columns) -> Listing:
    if hasattr(what, "features") and hasattr(what, "column_names"):
        return list_datasets(what, limits, columns)
    if f"{type(what).__module__}.".startswith(_FRAMES) and hasattr(what, "columns"):
        return list_frame(what, columns)
    if hasattr(what, "__len__") and hasattr(what, "__getitem__") and not isinstance(what, np.ndarray):
        no_columns(columns, f"{type(what).__name__} data set")
        return list_pairs(what)
    raise ClipguardError(
        f"{type(what).__name__} cannot be opened: give a path, (images, labels) or a data set object"
    )


def expanded(path: str | Path) -> Path:
    """Return a path with the home folder in place of `~`.

    Raises:
        ClipguardError: it names a user who is not there.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ClipguardError(f"{path}: no such user has a home folder here: give the whole path") from error


def _path_listing(path: Path, limits: Limits, columns: Columns) -> Listing:
    if path.is_dir():
        shards = shard_folder(path)
        if shards is None:
            return list_folder(path, limits, columns)
        return _files_listing(choose_files(shards), shards, limits, columns)
    files = [path] if path.exists() else files_like(path)
    if not files:
        raise ClipguardError(f"{path} does not exist: give {KINDS}")
    return _files_listing(files, path, limits, columns)


def _files_listing(files: list[Path], location: Path, limits: Limits, columns: Columns) -> Listing:
    # What is opened may be swapped for a pipe later; the readers of archives check again.
    for file in files:
        if not file.is_file():
            raise ClipguardError(f"{file} is no regular file: give {KINDS}")
    suffixes = {file.suffix.lower() for file in files}
    if suffixes == {".npz"} and len(files) == 1:
        return list_npz(files[0], limits, columns)
    if suffixes == {".parquet"}:
        return list_parquet(files, location, limits, columns)
    if suffixes == {".tar"}:
        return list_tar(files, location, limits, columns)
    raise ClipguardError(f"{location} is no data set: give {KINDS}")
