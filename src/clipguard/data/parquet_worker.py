"""The worker that reads Parquet files: it may crash, and only that file is refused."""

import json
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np

from clipguard.data.parquet_file import list_shard, read_cells
from clipguard.safety.limits import Limits
from clipguard.safety.sandbox import FIRST_KIND, PATIENCE, Frame, limit_time, serve

FILE, ROWS, LABELS, TEXTS, CELL, REASON = range(FIRST_KIND, FIRST_KIND + 6)
"""Of a request: `path` and `name` as JSON; int64 if cells are to be read. Of a listing: int64; `paths` and
`names` as JSON. Of cells: the bytes of an image, or why there are none."""


def _answer(request: list[Frame], limits: Limits) -> Iterator[Frame]:
    file = json.loads(bytes(request[0][1]))
    path, name = Path(file["path"]), file["name"]
    if len(request) == 1:
        limit_time(PATIENCE * limits.seconds)
        shard = list_shard(path, name, limits)
        yield LABELS, np.ascontiguousarray(shard.labels, np.int64).tobytes()
        yield TEXTS, json.dumps({"paths": shard.paths, "names": shard.names}).encode()
        return
    for item in read_cells(path, name, np.frombuffer(request[1][1], np.int64), limits):
        if isinstance(item, bytes):
            yield CELL, item
        else:
            yield REASON, item.reason.encode("utf-8", "backslashreplace")


def main(fields: str) -> None:
    """Serve until the parent goes; `fields` are those of `Limits` as JSON."""
    # Arrow's own allocators reserve address space in advance, of which there is little here.
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
    # Now, since no file is to blame for the time that this takes.
    import_module("pyarrow.compute")
    import_module("pyarrow.parquet")
    serve(Limits(**json.loads(fields)), _answer)
