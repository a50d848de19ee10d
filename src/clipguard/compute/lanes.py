"""Lanes: independent pieces of work side by side, each computed by one thread.

Two lanes of one thread do more than one lane of two: threads that share each small operation mostly wait for
each other, the more so beside another busy process. And what a lane computes does not depend on how many
there are.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from typing import ParamSpec, TypeVar

import torch

from clipguard.compute.device import current_device
from clipguard.compute.threads import available_threads, granted_threads, one_blas_thread, one_thread

Item = TypeVar("Item")
Result = TypeVar("Result")
Given = ParamSpec("Given")

_ABANDONED: ContextVar[threading.Event | None] = ContextVar("abandoned", default=None)


class AbandonedError(Exception):
    """Nobody waits for this lane's result any more."""


def go_on() -> None:
    """Return, unless nobody waits for this lane's result any more. To be asked every second or so.

    Raises:
        AbandonedError: then.
    """
    event = _ABANDONED.get()
    if event is not None and event.is_set():
        raise AbandonedError


def lanes_here() -> int:
    """Return how many lanes there may be: as many as threads, one on a GPU, and one inside a lane."""
    device = current_device()
    return available_threads() if device is None or device.kind == "cpu" else 1


def in_lanes(tasks: Sequence[Callable[[], Result]], lanes: int | None = None) -> list[Result]:
    """Return the tasks' results in the order of the tasks, however many lanes there are.

    The first task that fails, in that order, raises its exception here; those not yet begun are left out.

    Args:
        tasks: independent of each other, and of the thread that computes them.
        lanes: computed at the same time, at most; `lanes_here` if not given.
    """
    lanes = min(len(tasks), lanes_here() if lanes is None else lanes)
    if lanes <= 1:
        with one_thread():
            return [task() for task in tasks]
    return list(ordered_map(_call, tasks, lanes, len(tasks)))


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], lanes: int, ahead: int
) -> Iterator[Result]:
    """Give function(item) of one item after the other, computed in lanes while the reader is busy.

    Items are taken in the reader's thread. An exception is raised where its result would have come. Whoever
    stops early, or fails, leaves no work behind.

    Args:
        function: independent of the thread that computes it.
        items: taken one by one as results are taken.
        lanes: computed at the same time, at most.
        ahead: items taken whose results are not yet read, at most; with 1, the reader's thread computes all.
    """
    if ahead <= 1:
        yield from map(function, items)
        return
    abandoned, pending = threading.Event(), deque[Future[Result]]()
    with _pool(min(lanes, ahead), abandoned) as pool:
        for item in items:
            context = copy_context()
            context.run(_ABANDONED.set, abandoned)
            pending.append(pool.submit(context.run, _lane, function, item))
            if len(pending) == ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


@contextlib.contextmanager
def _pool(lanes: int, abandoned: threading.Event) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(
        lanes, thread_name_prefix="lane", initializer=torch.set_num_threads, initargs=(1,)
    )
    with one_blas_thread():
        try:
            yield pool
        finally:
            # In this order: what is told to stop makes room for nothing new.
            pool.shutdown(wait=False, cancel_futures=True)
            abandoned.set()
            pool.shutdown()
            # What a lane sets becomes the default of later threads: it is the caller's again.
            torch.set_num_threads(torch.get_num_threads())


def _lane(function: Callable[[Item], Result], item: Item) -> Result:
    device = current_device()
    with granted_threads(1), contextlib.nullcontext() if device is None else device.selected():
        return function(item)


def in_turn(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Return the function for several lanes, which is called by one of them at a time."""
    lock = threading.Lock()

    def guarded(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        with lock:
            return function(*args, **kwargs)

    return guarded


def _call(task: Callable[[], Result]) -> Result:
    return task()
