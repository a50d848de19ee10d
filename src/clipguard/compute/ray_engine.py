"""The engine on Ray: a fixed pool of actors, on one machine or many, each finishing whole units of shards.

A unit of shards is one row of a Ray data set, so that Ray carries numbers and never images. The actors read
the data through clipguard's own sandboxed readers and write into the run folder, which all nodes share.
"""

import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from clipguard.compute.device import choose_device, computing_on
from clipguard.compute.engine import ShardWork
from clipguard.compute.threads import one_thread
from clipguard.errors import ClipguardError, reason_of

_INSTALL: Final = "install it with pip install 'clipguard[ray]', or use the local engine"
_LOCAL: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class RayEngine:
    """Runs shards on Ray.

    Attributes:
        address: of a cluster, as `ray.init` takes it; None starts Ray on this machine for the time of a run.
        workers: number of actors; None takes one a GPU, or one a processor core where there is none.
        gpus: GPUs of each actor.
    """

    address: str | None = None
    workers: int | None = None
    gpus: float = 0.0

    def run(self, work: ShardWork, units: Sequence[Sequence[int]]) -> Iterator[int]:
        """Return all numbers of the units as they are finished, in any order.

        A worker that dies is replaced, and its unfinished shards are done again.

        Raises:
            ClipguardError: Ray is not installed or does not answer, or `work` raised it.
        """
        make = work.elsewhere()
        with _connected(self.address):
            from ray.data import ActorPoolStrategy, from_items

            size = min(self.workers or self._most(), len(units))
            # Whole numbers each: two actors of a half GPU could meet on one and find it full.
            resources: dict[str, Any] = {"num_gpus": self.gpus} if self.gpus else {"num_cpus": 1}
            finished = from_items([{"shards": list(unit)} for unit in units]).map_batches(
                _Actor,
                fn_constructor_args=(make, "cuda" if self.gpus else "cpu"),
                batch_size=1,
                compute=ActorPoolStrategy(size=size),
                **resources,
            )
            for row in finished.iter_rows():
                if row["error"]:
                    raise ClipguardError(str(row["error"]))
                yield int(row["shard"])

    def _most(self) -> int:
        import ray

        there = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray leaves it untyped
        return max(1, int(there.get("GPU", 0) / self.gpus if self.gpus else there.get("CPU", 1)))


class _Actor:
    """What a process of the pool holds: the function, made once."""

    def __init__(self, make: Callable[[], ShardWork], device: str) -> None:
        self.make, self.device = make, device
        self.work: ShardWork | None = None

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
        """Return one row a finished shard, or one with the fault that ends all."""
        try:
            # Not when the process starts: a fault there would be tried again for ever.
            with computing_on(choose_device(self.device)), one_thread():
                yield from self._finished(batch)
        except ClipguardError as error:
            yield {"shard": [-1], "error": [str(error)]}

    def _finished(self, batch: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
        self.work = work = self.work or self.make()
        for unit in batch["shards"]:
            shards = [int(shard) for shard in unit]
            # What a worker that died had finished comes first, as it did then: the rows of a unit that is
            # tried again stand for those of the first try.
            there = [shard for shard in shards if work.has(shard)]
            missing = [shard for shard in shards if shard not in there]
            for shard in itertools.chain(there, work(missing)):
                yield {"shard": [shard], "error": [""]}


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Keep Ray at hand inside the block; a Ray that runs already is used and left as it is."""
    # Read when Ray starts: nothing is sent to its makers, and its core says nothing that its messages do not.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        from ray.data import DataContext
    except ImportError as error:
        raise ClipguardError(f"Ray is not installed ({reason_of(error)}): {_INSTALL}") from error
    ours = not ray.is_initialized()
    try:
        if ours:
            local: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": _LOCAL}
            where = {"address": address} if address else local
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **where)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise ClipguardError(
            f"Ray cannot be had at {address or 'this machine'}: {reason_of(error)}: start it there, or "
            "use the local engine"
        ) from error
    context = DataContext.get_current()
    bars, level = context.enable_progress_bars, logging.getLogger("ray.data").level
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        logging.getLogger("ray.data").setLevel(level)
        if ours:
            ray.shutdown()
