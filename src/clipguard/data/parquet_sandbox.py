"""Parquet files read by a sandboxed worker, `parquet_worker`."""

import json
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Int64

from clipguard.data.listing import Failed
from clipguard.data.parquet_file import Shard
from clipguard.data.parquet_worker import CELL, FILE, LABELS, REASON, ROWS, TEXTS
from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits
from clipguard.safety.pool import lent_worker
from clipguard.safety.sandbox import (
    END,
    FAULT,
    PATIENCE,
    REASON_BYTES,
    Frame,
    Role,
    Worker,
    WorkerDied,
    reason_of,
    role_of,
)

ROLE: Final = role_of("Parquet reader", "clipguard.data.parquet_worker")


def sandboxed_shard(path: Path, name: str, limits: Limits, role: Role = ROLE) -> Shard:
    """Return what `list_shard` does.

    Raises:
        ClipguardError: as there; or the file made the worker crash or hang.
    """
    with _reader(name, limits, role) as worker:
        worker.send([_file(path, name)])
        # No honest answer is larger than the memory of the one who gives it.
        most = limits.memory
        # After the first byte, the rest follows at once.
        _, labels = worker.read({LABELS: most, FAULT: most}, PATIENCE * PATIENCE * limits.seconds)
        _, texts = worker.read({TEXTS: most})
        worker.read({END: 0})
        shard = _shard(labels, texts)
        if shard is None:
            raise worker.protocol_error()
        return shard


def sandboxed_cells(
    path: Path, name: str, rows: Int64[np.ndarray, "m"], limits: Limits, role: Role = ROLE
) -> Generator[bytes | Failed, None, None]:
    """Return what `read_cells` does.

    Raises:
        ClipguardError: as there; or the file made the worker crash or hang.
    """
    expected = {CELL: limits.file_bytes, REASON: REASON_BYTES, FAULT: limits.memory}
    with _reader(name, limits, role) as worker:
        worker.send([_file(path, name), (ROWS, rows.astype(np.int64).tobytes())])
        for _ in rows:
            kind, content = worker.read(expected)
            yield bytes(content) if kind == CELL else Failed(reason_of(content))
        worker.read({END: 0})


def _file(path: Path, name: str) -> Frame:
    # Absolute, since the worker may have started in another working folder than there is now.
    return FILE, json.dumps({"path": os.path.abspath(path), "name": name}).encode()


@contextmanager
def _reader(name: str, limits: Limits, role: Role) -> Iterator[Worker]:
    try:
        with lent_worker(role, limits) as worker:
            yield worker
    except WorkerDied as died:
        raise ClipguardError(f"{name} cannot be read as Parquet: {died}: do not use it") from died


def _shard(labels: bytearray, texts: bytearray) -> Shard | None:
    """Return the contents of a listing; None where they are not of the form that a listing has."""
    n, odd = divmod(len(labels), 8)
    try:
        value = json.loads(texts)
        paths, names = value["paths"], value["names"]
        lists = all(isinstance(part, list | None) for part in (paths, names))
        textual = all(isinstance(text, str | None) for text in (*(paths or ()), *(names or ())))
    except (ValueError, RecursionError, LookupError, TypeError):
        return None
    if odd or not (lists and textual) or len(paths or ()) not in (0, n) or None in (names or ()):
        return None
    return Shard(np.frombuffer(labels, np.int64), paths, None if names is None else tuple(names))
