"""Parquet files read in a process of their own, by `parquet_worker`."""

import errno
import json
import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int64

from clipguard.data.listing import Failed, Item
from clipguard.data.parquet_file import Shard
from clipguard.data.parquet_worker import CELL, DONE, FAULT, FRAME, LABELS, REASON, REST
from clipguard.errors import ClipguardError, one_line
from clipguard.safety.limits import Limits
from clipguard.safety.sandbox import PATIENCE, Child, WorkerDied, command_of

COMMAND: Final = command_of("clipguard.data.parquet_worker")


class _Reader(Child):
    trade = "Parquet reader"

    def ask(self, path: Path, shown: str, rows: Int64[np.ndarray, "m"] | None) -> None:
        """Send a request; the process may have started in another working folder than there is now."""
        count = None if rows is None else len(rows)
        line = json.dumps({"path": os.path.abspath(path), "shown": shown, "rows": count})
        self.greet()
        self.tell(line.encode() + b"\n" + (b"" if rows is None else rows.astype(np.int64).tobytes()))

    def frame(self, wanted: Sequence[int], seconds: float | None = None) -> tuple[int, bytes]:
        """Return the next frame, of one of the kinds `wanted`.

        Raises:
            ClipguardError: the file cannot be read.
            WorkerDied: the process died, was stopped, or answers what nobody asked for.
        """
        kind, length = FRAME.unpack(self.hear(FRAME.size, seconds).tobytes())
        # No honest answer is larger than the memory of the one who gives it.
        if kind not in (*wanted, FAULT) or length > self.limits.memory:
            raise self.nonsense()
        content = self.hear(length).tobytes()
        if kind == FAULT:
            told = self._json(content, {"errno": int, "text": str})
            number = told["errno"] if told["errno"] in errno.errorcode else 0
            # By the cause, a fault of the disk is told from bad input, as where the file is read right here.
            raise ClipguardError(one_line(told["text"])) from (
                OSError(number, os.strerror(number)) if number else None
            )
        return kind, content

    def shard(self) -> Shard:
        """Return the answer to a listing, after the first byte of which the rest follows at once."""
        _, labels = self.frame([LABELS], PATIENCE * PATIENCE * self.limits.seconds)
        rest = self._json(self.frame([REST])[1], {"paths": list | None, "names": list | None})
        self.frame([DONE])
        paths, names = rest["paths"], rest["names"]
        n, odd = divmod(len(labels), 8)
        texts = [*(paths or ()), *(names or ())]
        sound = all(isinstance(text, str | None) for text in texts) and len(paths or ()) in (0, n)
        if odd or not sound or None in (names or ()):
            raise self.nonsense()
        return Shard(np.frombuffer(labels, np.int64), paths, None if names is None else tuple(names))

    def _json(self, content: bytes, kinds: dict[str, Any]) -> dict[str, Any]:
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise self.nonsense() from error
        if not isinstance(value, dict) or value.keys() != kinds.keys():
            raise self.nonsense()
        if not all(isinstance(value[key], kind) for key, kind in kinds.items()):
            raise self.nonsense()
        return value


def asked_for_shard(path: Path, shown: str, limits: Limits, command: Sequence[str] = COMMAND) -> Shard:
    """Return what `list_shard` does.

    Raises:
        ClipguardError: as there; or the file made the process crash or hang.
    """
    with _at_work(shown, limits, tuple(command)) as reader:
        reader.ask(path, shown, None)
        return reader.shard()


def asked_for_cells(
    path: Path,
    shown: str,
    wanted: Int64[np.ndarray, "m"],
    limits: Limits,
    command: Sequence[str] = COMMAND,
) -> Generator[Item, None, None]:
    """Return what `read_cells` does.

    Raises:
        ClipguardError: as there; or the file made the process crash or hang.
    """
    with _at_work(shown, limits, tuple(command)) as reader:
        reader.ask(path, shown, wanted)
        for _ in wanted:
            kind, content = reader.frame([CELL, REASON])
            if kind == CELL and len(content) > limits.file_bytes:
                raise reader.nonsense()
            yield content if kind == CELL else Failed(one_line(content.decode("utf-8", "replace")))
        reader.frame([DONE])


@cache
def _pool(limits: Limits, command: tuple[str, ...]) -> deque[_Reader]:
    """Return the processes without work: loading Arrow takes longer than reading a thousand small images."""
    return deque()


# A forked child would share the pipes with its parent.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


@contextmanager
def _at_work(shown: str, limits: Limits, command: tuple[str, ...]) -> Iterator[_Reader]:
    """Lend a process; it is kept for the next one if it has said all that it had to say."""
    idle = _pool(limits, command)
    reader = None
    with suppress(IndexError):
        reader = idle.pop()
    reader = reader or _Reader(limits, command)
    try:
        yield reader
    except WorkerDied as lost:
        reader.stop()
        raise ClipguardError(f"{shown} cannot be read as Parquet: {lost}: do not use it") from lost
    except BaseException as error:
        # After a fault that it told of, it waits for the next request; else it has more to say.
        if isinstance(error, ClipguardError) and reader.greeted and reader.process.poll() is None:
            idle.append(reader)
        else:
            reader.stop()
        raise
    idle.append(reader)
