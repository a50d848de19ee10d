"""Embeddings that another tool has computed with the same model, in the layout of clip-retrieval.

FOLDER/img_emb/*.npy           [m, d], of any floating type
FOLDER/metadata/*.parquet      a column `image_path`, row by row of the .npy file at the same place
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Int64

from clipguard.data import ImageSource
from clipguard.data.listing import file_state
from clipguard.errors import ClipguardError, reason_of
from clipguard.runs import ShardedArray

if TYPE_CHECKING:
    import pyarrow as pa


class KnownEmbeddings:
    """The embeddings of a folder, found by the ids of a source.

    Raises:
        ClipguardError: files are missing or damaged, or an image of the source has no embedding.
    """

    def __init__(self, folder: Path, source: ImageSource) -> None:
        self.folder = folder
        self._vectors = ShardedArray.of(folder / "img_emb")
        self._places = _places(folder, source, len(self._vectors))

    def __getitem__(self, rows: Int64[np.ndarray, "m"]) -> Float32[np.ndarray, "m d"]:
        """Return the embeddings of some rows of the source, scaled to length one.

        Raises:
            ClipguardError: one has no length, as NaN or zeros have none.
        """
        vectors = self._vectors[self._places[rows]].astype(np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not (np.isfinite(lengths).all() and (lengths > 0).all()):
            raise ClipguardError(f"embeddings {self.folder} hold NaN, Inf or zeros: compute them again")
        unit: Float32[np.ndarray, "m d"] = vectors / lengths
        return unit

    @property
    def width(self) -> int:
        """Return d."""
        return int(self._vectors.shape[1])


def folder_key(folder: Path) -> str:
    """Return what the system lists of a folder of embeddings: names, sizes and dates of its files."""
    files = sorted((*folder.glob("img_emb/*.npy"), *folder.glob("metadata/*.parquet")))
    return json.dumps([file_state(file, file.name) for file in files])


def _places(folder: Path, source: ImageSource, n: int) -> Int64[np.ndarray, "n"]:
    """Return the row of the embeddings that belongs to each row of the source."""
    import pyarrow as pa
    import pyarrow.compute as pc

    names = pa.chunked_array(list(_names(folder)), pa.string())
    if len(names) != n:
        raise ClipguardError(f"embeddings {folder}: {n} vectors but {len(names)} names: compute them again")
    rows = pc.index_in(pa.array(source.ids, pa.string()), value_set=names.combine_chunks())
    if rows.null_count:
        first = source.ids[int(np.flatnonzero(rows.is_null().to_numpy(zero_copy_only=False))[0])]
        raise ClipguardError(
            f"embeddings {folder} have none for {rows.null_count} of {len(source)} images of "
            f"{source.location}, first {first!r}: image_path has to be the path below the folder, as in "
            "samples.parquet"
        )
    return np.asarray(rows.to_numpy(), np.int64)


def _names(folder: Path) -> "Iterator[pa.Array]":  # imported where it is needed
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in sorted((folder / "metadata").glob("*.parquet")):
        try:
            with pq.ParquetFile(file) as opened:
                column = opened.read(["image_path"]).column("image_path")
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise ClipguardError(f"{file} cannot be read: {reason_of(error)}: compute it again") from error
        yield from column.cast(pa.string()).chunks
