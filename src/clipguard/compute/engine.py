"""Engines: who runs one function over the shards of a data set. All give the same files."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

Work = Callable[[Sequence[int]], Iterator[int]]
"""Finishes the shards of the numbers it is given, in order, and says which one is finished.

A finished shard is a file that was renamed into place, so that a kill costs the shard that was being made.
Engines may send the function to other processes: it holds values and paths, and nothing that is open.
"""


@runtime_checkable
class Engine(Protocol):
    """Runs a function over shards."""

    def run(self, work: Work, units: Sequence[Sequence[int]]) -> Iterator[int]:
        """Return the number of each shard as it is finished, in any order.

        Args:
            work: is called with one or more units at a time.
            units: shard numbers that are best read in one go.
        """


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """Runs all shards in this process, in order; decoding happens in its sandboxed workers."""

    def run(self, work: Work, units: Sequence[Sequence[int]]) -> Iterator[int]:
        """Return the numbers as they are finished."""
        return work([number for unit in units for number in unit])
