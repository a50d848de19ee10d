"""Processes of their own for code in which hostile bytes may find a fault: started, confined, heard, stopped.

Both ends speak plain bytes over two pipes. Nothing is pickled, so that a library which hostile bytes have
taken over can answer nonsense, but cannot make the parent run anything.
"""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Final

import numpy as np
from jaxtyping import UInt8

from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits

READY: Final = b"clipguard"
START_SECONDS: Final = 120.0
PATIENCE: Final = 10
"""Seconds by the clock for each of processor time, after which a process that sleeps is stopped too."""


def command_of(module: str) -> tuple[str, ...]:
    """Return what follows the interpreter to run `main` of a module, which is given the limits as JSON.

    In isolated mode the interpreter finds nothing in the working folder, which may be the stranger's.
    """
    return (
        "-I",
        "-c",
        f"import sys; sys.path[:] = sys.argv[2:]; from {module} import main; main(sys.argv[1])",
    )


class WorkerDied(Exception):  # noqa: N818  # a finding about the data, no fault
    """A process has died or was stopped; its text is the reason.

    Attributes:
        slow: it took too long, so that trying again would only take as long again.
    """

    def __init__(self, reason: str, slow: bool) -> None:
        super().__init__(reason)
        self.slow = slow


class Child:
    """A confined process and the pipes to it; `trade` names it in messages.

    It ends by itself when this process does, since its pipe closes.
    """

    trade = "reader"

    def __init__(self, limits: Limits, command: Sequence[str]) -> None:
        self.limits = limits
        self.command = [sys.executable, *command, json.dumps(asdict(limits)), *_search_path()]
        self._start()

    def _start(self) -> None:
        self.greeted = False
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            # A session of its own: an interrupt from the terminal is for the parent to handle.
            self.process = subprocess.Popen(
                self.command,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, **threads},
            )
        except OSError as error:
            raise self._not_started(str(error)) from error
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.requests, self.replies = self.process.stdin.fileno(), self.process.stdout.fileno()
        self.ready = select.poll()
        self.ready.register(self.replies, select.POLLIN)

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def restart(self) -> None:
        """Put a fresh process in the place of this one."""
        self.stop()
        self._start()

    def tell(self, content: bytes) -> None:
        """Write to the process; one that dies of it has nothing to answer, which is noticed there."""
        left = memoryview(content)
        with suppress(BrokenPipeError):
            while len(left):
                left = left[os.write(self.requests, left) :]

    def greet(self) -> None:
        """Wait until the process is there; that it cannot start is no fault of the data.

        Raises:
            ClipguardError: it cannot.
        """
        if self.greeted:
            return
        try:
            said = self.hear(len(READY), START_SECONDS).tobytes()
        except WorkerDied as error:
            raise self._not_started(str(error)) from error
        if said != READY:
            raise self._not_started("it answers nonsense")
        self.greeted = True

    def hear(self, count: int, seconds: float | None = None) -> UInt8[np.ndarray, "count"]:
        """Return exactly `count` bytes, each within `seconds` by the clock after the one before.

        Raises:
            WorkerDied: the process died or was stopped.
        """
        patience = PATIENCE * self.limits.seconds if seconds is None else seconds
        content = np.empty(count, np.uint8)
        left = memoryview(content.data)
        while len(left):
            if not self.ready.poll(1000 * patience):
                self.process.kill()
                raise WorkerDied(f"took longer than {patience:g} s by the clock", slow=True)
            got = os.readv(self.replies, [left])
            if not got:
                raise self._death()
            left = left[got:]
        return content

    def nonsense(self) -> WorkerDied:
        """Return what to raise after an answer that nobody asked for; the process is killed."""
        self.process.kill()
        return WorkerDied(f"{self.trade} answers nonsense", slow=False)

    def _death(self) -> WorkerDied:
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            # It closed its pipe, and lives on.
            return self.nonsense()
        if code == -signal.SIGPROF:
            return WorkerDied(f"took longer than {self.limits.seconds:g} s of processor time", slow=True)
        if code < 0:
            with suppress(ValueError):
                return WorkerDied(f"{self.trade} crashed ({signal.Signals(-code).name})", slow=False)
        return WorkerDied(f"{self.trade} crashed (exit code {code})", slow=False)

    def _not_started(self, why: str) -> ClipguardError:
        return ClipguardError(
            f"a process for the {self.trade} cannot be started ({why}): "
            "free memory, or switch the limit `isolated` off"
        )


def confines(limits: Limits) -> bool:
    """Return whether hostile bytes are to be, and can be, left to a process of its own."""
    return limits.isolated and os.name == "posix" and bool(sys.executable)


def enter(limits: Limits) -> int:
    """Confine this process, tell the parent that it is there, and return the descriptor of its answers."""
    # Not on every platform; the parent asks `confines` first.
    import resource

    replies = _own_stdout()
    for kind, most in (
        (resource.RLIMIT_AS, limits.memory),
        (resource.RLIMIT_CORE, 0),
        # No file can be written, whatever a library is made to do.
        (resource.RLIMIT_FSIZE, 0),
    ):
        # Some systems do not know all of these bounds.
        with suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))
    write(replies, READY)
    return replies


def write(descriptor: int, *parts: bytes | memoryview) -> None:
    """Write all of `parts`."""
    for part in parts:
        left = memoryview(part)
        while len(left):
            left = left[os.write(descriptor, left) :]


def _own_stdout() -> int:
    """Return a descriptor of stdout that nobody else knows: libraries in C print what they like."""
    ours = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return ours


def _search_path() -> list[str]:
    return [os.path.abspath(path) for path in sys.path if path]
