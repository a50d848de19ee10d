"""Parquet files read by a sandboxed worker: it may crash, and only that file is refused."""

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Final

import numpy as np
from jaxtyping import Int64
from msgspec import Meta
from msgspec.structs import replace

from clipguard.data.columns import NO_COLUMNS, Columns
from clipguard.data.listing import Failed
from clipguard.data.parquet_file import Shard, list_shard, read_cells
from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits
from clipguard.safety.sandbox import (
    PATIENCE,
    REASON_BYTES,
    Fault,
    Message,
    Role,
    Worker,
    WorkerDied,
    lent_worker,
    limit_time,
    role_of,
    serve,
)

ROLE: Final = role_of("Parquet reader", "clipguard.data.parquet_sandbox")


class Request(Message):
    """A file, what messages call it, and the rows (int64) whose cells are needed; without rows, its listing.

    Paths are bytes, since they need not be UTF-8.
    """

    path: bytes
    name: bytes
    columns: Columns
    rows: bytes | None = None


class Listed(Message):
    """A `Shard`; its labels and groups are int64."""

    labels: bytes
    texts: tuple[str, ...] | None
    paths: list[str | None] | None
    groups_of_rows: list[str | None] | None
    names: tuple[str, ...] | None
    groups: bytes
    outside: bool


class Cell(Message):
    """The bytes of an image, or why there are none."""

    content: bytes = b""
    reason: Annotated[str, Meta(max_length=REASON_BYTES)] = ""


def sandboxed_shard(
    path: Path, name: str, limits: Limits, role: Role = ROLE, columns: Columns = NO_COLUMNS
) -> Shard:
    """Return what `list_shard` does.

    Raises:
        ClipguardError: as there; or the file made the worker crash or hang.
    """
    with _reader(path, Request(b"", os.fsencode(name), columns), limits, role) as worker:
        # No true answer is larger than the memory of the one who gives it.
        listed: Listed = worker.read(Listed | Fault, limits.memory, PATIENCE * PATIENCE * limits.seconds)
        worker.finish()
        count, odd = divmod(len(listed.labels), 8)
        if odd or len(listed.groups) % 8 or len(listed.paths or ()) not in (0, count):
            raise worker.protocol_error()
        if len(listed.groups_of_rows or ()) not in (0, count):
            raise worker.protocol_error()
        labels, groups = (np.frombuffer(numbers, np.int64) for numbers in (listed.labels, listed.groups))
        if len(groups) and not (groups[0] == 0 and (np.diff(groups) >= 0).all() and groups[-1] <= count):
            raise worker.protocol_error()
        if listed.texts is not None and not ((labels >= 0) & (labels < len(listed.texts))).all():
            raise worker.protocol_error()
        return Shard(
            labels,
            listed.texts,
            listed.paths,
            listed.groups_of_rows,
            listed.names,
            groups,
            listed.outside,
        )


def sandboxed_cells(  # those of `read_cells`, and the worker
    path: Path,
    name: str,
    rows: Int64[np.ndarray, "m"],
    limits: Limits,
    role: Role = ROLE,
    columns: Columns = NO_COLUMNS,
) -> Generator[bytes | Failed, None, None]:
    """Return what `read_cells` does.

    Raises:
        ClipguardError: as there; or the file made the worker crash or hang.
    """
    request = Request(b"", os.fsencode(name), columns, rows.astype(np.int64).tobytes())
    with _reader(path, request, limits, role) as worker:
        for _ in rows:
            cell: Cell = worker.read(Cell | Fault, limits.file_bytes + REASON_BYTES)
            yield Failed(cell.reason) if cell.reason else cell.content
        worker.finish()


@contextmanager
def _reader(path: Path, request: Request, limits: Limits, role: Role) -> Iterator[Worker]:
    try:
        with lent_worker(role, limits) as worker:
            # Absolute, since the worker may have started in another working folder than there is now.
            worker.send([replace(request, path=os.fsencode(os.path.abspath(path)))])
            yield worker
    except WorkerDied as died:
        name = os.fsdecode(request.name)
        raise ClipguardError(f"{name} cannot be read as Parquet: {died}: do not use it") from died


def main(fields: str) -> None:
    """Read in this process, the worker, until the parent goes; `fields` are those of `Limits` as JSON."""
    # Arrow's own allocators reserve address space in advance, of which there is little here.
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"
    # Now, since no file is to blame for the time that this takes.
    import_module("pyarrow.compute")
    import_module("pyarrow.parquet")
    serve(fields, Request, _answer)


def _answer(request: Request, limits: Limits) -> Iterator[Message]:
    path, name = Path(os.fsdecode(request.path)), os.fsdecode(request.name)
    if request.rows is None:
        limit_time(PATIENCE * limits.seconds)
        shard = list_shard(path, name, limits, request.columns)
        yield Listed(
            labels=np.ascontiguousarray(shard.labels, np.int64).tobytes(),
            texts=shard.texts,
            paths=shard.paths,
            groups_of_rows=shard.groups_of_rows,
            names=shard.names,
            groups=shard.groups.tobytes(),
            outside=shard.outside,
        )
        return
    rows = np.frombuffer(request.rows, np.int64)
    for item in read_cells(path, name, rows, limits, request.columns):
        yield Cell(content=item) if isinstance(item, bytes) else Cell(reason=item.reason)
