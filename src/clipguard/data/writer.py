"""An image set to Parquet in the Hugging Face layout, without loss: `ImageSource` reads the same back."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from clipguard.runs.files import replacing
from clipguard.types import ImageSet

if TYPE_CHECKING:
    import pyarrow as pa

GROUP: Final = 1000
"""Rows a row group: what a reader, and this writer, holds in memory at once."""


GROUP_COLUMN: Final = "group"


def write_parquet(data: ImageSet, path: Path) -> None:
    """Write `path`, all or nothing: PNG bytes, ids as their paths, labels, class names as metadata.

    Groups, where the set has any, become the column `group`.
    """
    import pyarrow.parquet as pq

    schema = _schema(data.class_names, grouped=data.groups is not None)
    with replacing(path) as part, pq.ParquetWriter(part, schema) as writer:
        for group in _groups(data, schema):
            writer.write_table(group, row_group_size=GROUP)


def _schema(class_names: tuple[str, ...], *, grouped: bool) -> "pa.Schema":
    """Return the columns, and the names where `datasets` and the Hub's viewer look for them."""
    import pyarrow as pa

    features = {"image": {"_type": "Image"}, "label": {"names": list(class_names), "_type": "ClassLabel"}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    metadata: dict[bytes | str, bytes | str] = {"huggingface": json.dumps({"info": {"features": features}})}
    columns = [("image", image), ("label", pa.int64()), *([(GROUP_COLUMN, pa.int64())] if grouped else [])]
    return pa.schema(columns, metadata=metadata)


def _groups(data: ImageSet, schema: "pa.Schema") -> "Iterator[pa.Table]":
    import pyarrow as pa

    for start in range(0, len(data), GROUP):
        rows = slice(start, start + GROUP)
        pairs = zip(data.images[rows], data.ids[rows], strict=True)
        images: list[dict[str, Any]] = [{"bytes": png(pixels), "path": name} for pixels, name in pairs]
        columns: dict[str, Any] = {"image": images, "label": data.labels[rows]}
        if data.groups is not None:
            columns[GROUP_COLUMN] = data.groups[rows]
        yield pa.table(columns, schema=schema)


def png(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Return the image as PNG: lossless, so that a trigger keeps every pixel."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()
