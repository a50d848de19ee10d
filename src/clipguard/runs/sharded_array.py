"""Rows of one array that lie in many files: read as far as they are asked for, never mapped, never merged."""

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int64, Shaped

from clipguard.errors import ClipguardError, reason_of

KEEP_OPEN: Final = 64
"""Files that are held open at once: far fewer than a process may have."""


class ShardedArray:
    """Rows of equal shape and type in .npy files, one after the other, read as `types.Rows` says.

    Reads go through the cache of the operating system, not through memory maps: these would need a
    descriptor a file, and a file that is cut short would kill the process.

    Args:
        files: in order; those without rows may have another shape.

    Raises:
        ClipguardError: a file is missing, damaged, or of another shape or type than the first.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        headers = [_header(file) for file in files]
        full = [number for number, (shape, _, _) in enumerate(headers) if shape[0]]
        first = headers[full[0] if full else 0]
        self._row, self.dtype = first[0][1:], first[1]
        for number in full:
            if (headers[number][0][1:], headers[number][1]) != (self._row, self.dtype):
                raise ClipguardError(
                    f"{files[number]} holds {headers[number][1]} {list(headers[number][0])}, unlike "
                    f"{files[full[0]]}: delete both and run again"
                )
        self._files = [files[number] for number in full]
        self._offsets = [headers[number][2] for number in full]
        self._starts = np.cumsum([0, *(headers[number][0][0] for number in full)])
        self._bytes = int(self.dtype.itemsize * np.prod(self._row, dtype=np.int64))
        self._open: OrderedDict[int, _Opened] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def of(cls, folder: Path) -> "ShardedArray":
        """Return the array in all .npy files of a folder, in the order of their names.

        Raises:
            ClipguardError: there is none, or see above.
        """
        files = sorted(folder.glob("*.npy"))
        if not files:
            raise ClipguardError(f"{folder} holds no .npy file: delete it and run again")
        return cls(files)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of rows, then the shape of each."""
        return (len(self), *self._row)

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self._starts[-1])

    def __getitem__(self, rows: slice | Int64[np.ndarray, "m"], /) -> Shaped[np.ndarray, "..."]:
        """Return some rows, as a new array.

        Raises:
            IndexError: a row beyond the last.
            ClipguardError: a file has gone or is shorter than it was.
        """
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step != 1:
                raise TypeError("a slice of rows has no step")
            return self._between(start, max(start, stop))
        if np.asarray(rows).dtype.kind not in "iu" or rows.ndim != 1:
            raise TypeError("rows are asked for by a slice or by an array of row numbers")
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"rows up to {rows.max()} of {len(self)}")
        out = np.empty((len(rows), *self._row), self.dtype)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        places = rows - self._starts[shards]
        flat = out.reshape(len(rows), self._bytes // self.dtype.itemsize)
        for number, (shard, place) in enumerate(zip(shards.tolist(), places.tolist(), strict=True)):
            self._read(shard, place, flat[number])
        return out

    def _between(self, start: int, stop: int) -> Shaped[np.ndarray, "..."]:
        out = np.empty((stop - start, *self._row), self.dtype)
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        done = start
        while done < stop:
            end = min(stop, int(self._starts[shard + 1]))
            part = out[done - start : end - start].reshape(-1)
            self._read(shard, done - int(self._starts[shard]), part)
            done, shard = end, shard + 1
        return out

    def _read(self, shard: int, place: int, into: Shaped[np.ndarray, "..."]) -> None:
        file, left = self._file(shard), into.view(np.uint8).data
        offset = self._offsets[shard] + place * self._bytes
        while len(left):
            count = os.preadv(file.descriptor, [left], offset)
            if not count:
                raise ClipguardError(f"{self._files[shard]} is shorter than it was: delete it and run again")
            left, offset = left[count:], offset + count

    def _file(self, shard: int) -> "_Opened":
        """Return an open file. One that is closed for its sake stays open as long as a thread reads it."""
        with self._lock:
            if shard not in self._open:
                try:
                    self._open[shard] = _Opened(self._files[shard])
                except OSError as error:
                    raise ClipguardError(
                        f"{self._files[shard]} cannot be read ({reason_of(error)}): run again to write it"
                    ) from error
                if len(self._open) > KEEP_OPEN:
                    self._open.popitem(last=False)
            self._open.move_to_end(shard)
            return self._open[shard]


class _Opened:
    """A file that is closed when nobody reads it any more."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)


def _header(file: Path) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return shape, type and where the values begin; as many bytes as they say must be there."""
    try:
        with file.open("rb") as opened:
            if np.lib.format.read_magic(opened) != (1, 0):
                raise ValueError("another version of the format")
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(opened)
            offset, size = opened.tell(), os.fstat(opened.fileno()).st_size
        if fortran or dtype.hasobject or not shape:
            raise ValueError("not an array of rows")
        if size != offset + dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
            raise ValueError("another length than its header says")
    except FileNotFoundError as error:
        raise ClipguardError(f"{file} is missing: run again to write it") from error
    except (OSError, ValueError) as error:
        raise ClipguardError(
            f"{file} cannot be read ({reason_of(error)}): delete it and run again"
        ) from error
    return shape, dtype, offset
