"""Engines: who runs one function over the shards of a data set. All give the same files."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@runtime_checkable
class ShardWork(Protocol):
    """A function over shards. A finished shard is a file renamed into place: a kill costs one shard."""

    def __call__(self, shards: Sequence[int], /) -> Iterator[int]:
        """Finish the shards in order and say which one is finished."""

    def has(self, shard: int, /) -> bool:
        """Return whether a shard is finished."""

    def elsewhere(self) -> "Callable[[], ShardWork]":
        """Return what makes the same function in another process, by values and paths alone.

        Raises:
            ClipguardError: it works on something that only this process has.
        """


@runtime_checkable
class Engine(Protocol):
    """Runs a function over shards."""

    def run(self, work: ShardWork, units: Sequence[Sequence[int]]) -> Iterator[int]:
        """Return the number of each shard as it is finished, in any order.

        Args:
            work: is called with one or more units at a time.
            units: shard numbers that are best read in one go.
        """


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """Runs all shards in this process, in order; decoding happens in its sandboxed workers."""

    def run(self, work: ShardWork, units: Sequence[Sequence[int]]) -> Iterator[int]:
        """Return the numbers as they are finished."""
        return work([shard for unit in units for shard in unit])
