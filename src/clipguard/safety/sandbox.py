"""Sandboxed workers: processes for code in which hostile bytes may find a fault, and the protocol to them.

Both ends send frames over two pipes: a kind, a length, and so many bytes. A request is any number of frames
and `END`, and so is its answer. Nothing is pickled: a library that hostile bytes have taken over can answer
wrongly, but cannot make the parent run anything.
"""

import json
import os
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from errno import errorcode
from typing import BinaryIO, Final

from clipguard.errors import ClipguardError, one_line
from clipguard.safety.limits import Limits

HANDSHAKE: Final = b"clipguard"
START_SECONDS: Final = 120.0
PATIENCE: Final = 10
"""Seconds by the clock for each of processor time, after which a process that sleeps is stopped too."""
REASON_BYTES: Final = 2000
"""The longest reason that a worker may give for one unreadable image."""
HEADER: Final = struct.Struct("<BQ")
ERRNO: Final = struct.Struct("<i")
END, FAULT, FIRST_KIND = range(3)
"""Two kinds that end an answer; a fault is an errno and the text of a `ClipguardError`. Then a role's own."""

Frame = tuple[int, bytes | memoryview]


@dataclass(frozen=True, slots=True)
class Role:
    """What a worker does.

    Attributes:
        name: what messages call it.
        code: what its interpreter runs; `sys.argv` holds the limits as JSON, then the search path.
    """

    name: str
    code: str


def role_of(name: str, module: str) -> Role:
    """Return the role of a worker that runs `main` of a module, which is given the limits as JSON."""
    return Role(name, f"import sys; sys.path[:] = sys.argv[2:]; from {module} import main; main(sys.argv[1])")


def sandboxes(limits: Limits) -> bool:
    """Return whether hostile bytes are to be, and can be, left to a worker."""
    return limits.isolated and os.name == "posix" and bool(sys.executable)


class WorkerDied(Exception):  # noqa: N818  # a finding about the data, no fault
    """A worker has died or was stopped; its text is the reason.

    Attributes:
        slow: it took too long, so that trying again would only take as long again.
    """

    def __init__(self, reason: str, slow: bool) -> None:
        super().__init__(reason)
        self.slow = slow


class Worker:
    """A sandboxed process and the pipes to it. It ends by itself when this process does: its pipe closes.

    Attributes:
        idle: it has nothing more to answer, so that it can take another request.
    """

    def __init__(self, role: Role, limits: Limits) -> None:
        self.role, self.limits = role, limits
        self._start()

    def _start(self) -> None:
        self.greeted = False
        # Isolated mode: the working folder may hold untrusted code, and nothing in it is imported.
        command = [sys.executable, "-I", "-c", self.role.code, json.dumps(asdict(self.limits))]
        try:
            # A session of its own: an interrupt from the terminal is for the parent to handle.
            self.process = subprocess.Popen(
                command + [os.path.abspath(path) for path in sys.path if path],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        except OSError as error:
            raise self._not_started(str(error)) from error
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.requests, self.answers = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self.requests, False)
        self.idle = True

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.idle = False
        with self.process:
            self.process.kill()

    def restart(self) -> None:
        """Put a fresh process in the place of this one."""
        self.stop()
        self._start()

    def send(self, frames: Iterable[Frame]) -> None:
        """Send a request. A process that dies of it, or reads none of it, is noticed by `read`."""
        self.idle = False
        parts = [part for kind, content in frames for part in (HEADER.pack(kind, len(content)), content)]
        left = memoryview(b"".join([*parts, HEADER.pack(END, 0)]))
        seconds = PATIENCE * self.limits.seconds if self.greeted else START_SECONDS
        with suppress(BrokenPipeError):
            while len(left):
                if not _ready(self.requests, select.POLLOUT, seconds):
                    self.process.kill()
                    return
                left = left[os.write(self.requests, left) :]

    def handshake(self) -> None:
        """Wait until the process is there.

        Raises:
            ClipguardError: it cannot start, which is no fault of the data.
        """
        try:
            if not self.greeted and self._receive(len(HANDSHAKE), START_SECONDS) != HANDSHAKE:
                raise self._not_started("protocol error")
        except WorkerDied as error:
            raise self._not_started(str(error)) from error
        self.greeted = True

    def read(self, expected: Mapping[int, int], seconds: float | None = None) -> tuple[int, bytearray]:
        """Return kind and content of the next frame of an answer.

        Args:
            expected: the kinds that may come, and the most bytes of each.
            seconds: by the clock that each byte may take after the one before.

        Raises:
            ClipguardError: a fault, where that is expected; its cause is the `OSError` of the worker, if any.
            WorkerDied: the process died, was stopped, or sent anything else.
        """
        self.handshake()
        seconds = PATIENCE * self.limits.seconds if seconds is None else seconds
        kind, length = HEADER.unpack(self._receive(HEADER.size, seconds))
        if length > expected.get(kind, -1) or (kind == FAULT and length < ERRNO.size):
            raise self.protocol_error()
        content = self._receive(length, seconds)
        self.idle = kind in (END, FAULT)
        if kind == FAULT:
            (number,) = ERRNO.unpack_from(content)
            # The cause separates a fault of the disk from bad input, as where the file is read right here.
            cause = OSError(number, os.strerror(number)) if number in errorcode else None
            raise ClipguardError(reason_of(content[ERRNO.size :])) from cause
        return kind, content

    def has_output(self) -> bool:
        """Return whether there is something to read; an idle process that has output died or misbehaves."""
        return _ready(self.answers, select.POLLIN, 0.0)

    def protocol_error(self) -> WorkerDied:
        """Return what to raise after an answer that makes no sense; the process is killed."""
        self.idle = False
        self.process.kill()
        return WorkerDied(f"{self.role.name}: protocol error", slow=False)

    def _receive(self, count: int, seconds: float) -> bytearray:
        content = bytearray(count)
        left = memoryview(content)
        while len(left):
            if not _ready(self.answers, select.POLLIN, seconds):
                self.process.kill()
                raise WorkerDied(f"took longer than {seconds:g} s by the clock", slow=True)
            received = os.readv(self.answers, [left])
            if not received:
                raise self._death()
            left = left[received:]
        return content

    def _death(self) -> WorkerDied:
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            # It closed its pipe, and lives on.
            return self.protocol_error()
        if code == -signal.SIGPROF:
            return WorkerDied(f"took longer than {self.limits.seconds:g} s of processor time", slow=True)
        names = {-known: known.name for known in signal.Signals}
        return WorkerDied(f"{self.role.name} crashed ({names.get(code, f'exit code {code}')})", slow=False)

    def _not_started(self, reason: str) -> ClipguardError:
        return ClipguardError(
            f"a worker for the {self.role.name} cannot be started ({reason}): "
            "free memory, or switch the limit `isolated` off"
        )


def _ready(descriptor: int, event: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, event)
    return bool(poll.poll(1000 * seconds))


def reason_of(content: bytearray) -> str:
    """Return the text of a frame, in one line."""
    return one_line(content.decode("utf-8", "replace"))


# What follows runs inside a worker.


def serve(limits: Limits, answer: Callable[[list[Frame], Limits], Iterator[Frame]]) -> None:
    """Confine this process, then answer requests until the parent goes.

    Args:
        limits: bounds on memory, and on the processor time of each frame of an answer.
        answer: request and limits -> frames; a `ClipguardError` that it raises is sent as a fault.
    """
    answers = _confine(limits)
    # The parent may be gone before its answer: that is no fault to report.
    with suppress(BrokenPipeError, struct.error):
        while True:
            # The whole request is read before the first answer: else both ends could wait for each other.
            request = _request(sys.stdin.buffer)
            last: Frame = END, b""
            try:
                limit_time(limits.seconds)
                for frame in answer(request, limits):
                    _write(answers, frame)
                    limit_time(limits.seconds)
            except ClipguardError as error:
                number = getattr(error.__cause__, "errno", None) or 0
                last = FAULT, ERRNO.pack(number) + str(error).encode("utf-8", "backslashreplace")
            limit_time(0.0)
            _write(answers, last)


def limit_time(seconds: float) -> None:
    """End this process after `seconds` of processor time; 0 lifts the limit."""
    # Not by the clock: on a busy machine a good image may take long.
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _request(pipe: BinaryIO) -> list[Frame]:
    frames: list[Frame] = []
    while True:
        kind, length = HEADER.unpack(pipe.read(HEADER.size))
        if kind == END:
            return frames
        frames.append((kind, pipe.read(length)))


def _write(pipe: BinaryIO, frame: Frame) -> None:
    pipe.write(HEADER.pack(frame[0], len(frame[1])))
    pipe.write(frame[1])
    pipe.flush()


def _confine(limits: Limits) -> BinaryIO:
    """Confine this process, tell the parent that it is there, and return the pipe for its answers."""
    # Not on every platform; the parent asks `sandboxes` first.
    import resource

    # A copy of stdout that nobody else knows: libraries in C print what they like.
    answers = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    # No file can be written, whatever a library is made to do.
    bounds = {resource.RLIMIT_AS: limits.memory, resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    for kind, most in bounds.items():
        # Some systems do not know all of these bounds.
        with suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))
    answers.write(HANDSHAKE)
    answers.flush()
    return answers
