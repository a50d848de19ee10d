"""How many threads of the processor compute, and where: many results must not depend on their number.

A sum that is split among threads depends on how many there are. So all but the training of one large net
computes with one thread (`one_thread`). What is faster side by side runs in lanes: `clipguard.compute.lanes`.

What torch 2.14 does: `torch.set_num_threads` holds for the calling thread and becomes the default of threads
that are started later. OpenBLAS has one number for the whole process. Both are put back.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Final

import torch
from threadpoolctl import threadpool_limits

from clipguard.compute.cores import cores, threads_of_environment
from clipguard.errors import ClipguardError

MOST_FOR_ONE_TRAINING: Final = 4
"""Threads of one training at most: more only wait for each other, in nets as narrow as these."""

_GRANTED: ContextVar[int | None] = ContextVar("granted", default=None)


def available_threads() -> int:
    """Return how many threads may compute at once.

    What `granted_threads` says, else OMP_NUM_THREADS, else the cores that this process may use.
    """
    return _chosen_threads() or cores()


def threads_are_chosen() -> bool:
    """Return whether somebody has said how many threads there may be."""
    return _chosen_threads() is not None


def _chosen_threads() -> int | None:
    """Return the number that somebody has chosen, None if nobody has."""
    granted = _GRANTED.get()
    return threads_of_environment() if granted is None else granted


@contextmanager
def granted_threads(threads: int | None) -> Iterator[None]:
    """Let so many threads compute at once inside the block; None leaves the choice to the environment.

    Raises:
        ClipguardError: less than one.
    """
    if threads is not None and threads < 1:
        raise ClipguardError(f"{threads} threads: give 1 or more")
    token = _GRANTED.set(_GRANTED.get() if threads is None else threads)
    try:
        yield
    finally:
        _GRANTED.reset(token)


def training_threads() -> int:
    """Return how many threads one large training takes: its result depends on them."""
    return min(available_threads(), MOST_FOR_ONE_TRAINING)


def idle_training_threads() -> int:
    """Return how many threads one large training takes where nobody has chosen: no more than cores are idle.

    Threads that share each operation wait for the slowest of them. Beside another busy process, two of them
    take twice as long as one (see `docs/architecture.md`).
    """
    if _chosen_threads() is not None:
        return training_threads()
    try:
        busy = round(os.getloadavg()[0])
    except (OSError, AttributeError):  # the system does not say
        busy = 0
    return max(1, min(cores() - busy, MOST_FOR_ONE_TRAINING))


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread inside the block, in torch and in BLAS."""
    with one_blas_thread(), intra_op(1):
        yield


@contextmanager
def intra_op(threads: int) -> Iterator[None]:
    """Let torch split each operation of the calling thread among so many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _OneBlasThread:
    """Holds BLAS at one thread while anybody asks for it: its number is the process's, blocks may overlap."""

    def __init__(self) -> None:
        self._lock, self._inside, self._limits = threading.Lock(), 0, ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Hold it inside the block."""
        with self._lock:
            if self._inside == 0:
                self._limits.enter_context(threadpool_limits(1, user_api="blas"))
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._limits.close()


one_blas_thread: Final = _OneBlasThread()
