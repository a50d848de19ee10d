"""Embeddings of an earlier run, found by the hash of the undecoded image: only new images are embedded."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from clipguard.data.provenance import ROWS, recorded_rows
from clipguard.errors import ClipguardError
from clipguard.runs import ShardedArray


class BaselineEmbeddings:
    """The embeddings that the reading pass of another run has written.

    Args:
        folder: of its stage `embeddings`.

    Raises:
        ClipguardError: files are missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._vectors = ShardedArray.of(folder / "img_emb")
        self._places: dict[bytes, int] = {}
        count = 0
        for file in sorted((folder / ROWS).glob("*.parquet")):
            rows = recorded_rows(file)
            for place in rows.readable.tolist():
                self._places.setdefault(rows.sha256[place], count)
                count += 1
        if count != len(self._vectors):
            raise ClipguardError(f"baseline {folder} has {len(self._vectors)} embeddings of {count} images")

    @property
    def width(self) -> int:
        """Return the numbers of an embedding."""
        return int(self._vectors.shape[1])

    def places(self, hashes: Sequence[bytes]) -> Int64[np.ndarray, "m"]:
        """Return where the image of each hash is embedded, -1 for one that is new."""
        return np.array([self._places.get(sha256, -1) for sha256 in hashes], np.int64)

    def __getitem__(self, places: Int64[np.ndarray, "m"]) -> Float32[np.ndarray, "m d"]:
        """Return the embeddings at some places."""
        vectors: Float32[np.ndarray, "m d"] = self._vectors[places].astype(np.float32)
        return vectors
