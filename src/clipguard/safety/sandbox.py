"""Sandboxed workers: processes for code in which hostile bytes may find a fault, and the protocol to them.

Both ends send msgpack over a socket, each message behind its length: a list of requests, then replies of the
types that the receiver expects, then `End` or `Fault`. Nothing is pickled: a library that hostile bytes have
taken over can answer wrongly, but cannot make the parent run anything.
"""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from errno import errorcode
from functools import cache
from typing import Any, BinaryIO, Final

import msgspec

from clipguard.errors import ClipguardError, one_line
from clipguard.safety.limits import Limits

HANDSHAKE: Final = b"clipguard"
START_SECONDS: Final = 120.0
PATIENCE: Final = 10
"""Seconds by the clock for each of processor time, after which a process that sleeps is stopped too."""
REASON_BYTES: Final = 2000
"""The longest reason that a worker may give for one unreadable image."""
LENGTH: Final = struct.Struct("<Q")

_encode_into = msgspec.msgpack.Encoder().encode_into
_decoder = cache(msgspec.msgpack.Decoder)


class Message(msgspec.Struct, tag=True, forbid_unknown_fields=True):
    """What either end may say; a role has its own requests and replies."""


class End(Message):
    """Nothing more comes for these requests."""


class Fault(Message):
    """A `ClipguardError` ends the answer: its text, and the errno of its cause or 0."""

    text: str
    errno: int


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
    """A sandboxed process and the socket to it. It ends by itself when this process does: its socket closes.

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
        self.socket, theirs = socket.socketpair()
        try:
            # A session of its own: an interrupt from the terminal is for the parent to handle.
            self.process = subprocess.Popen(
                command + [os.path.abspath(path) for path in sys.path if path],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        except OSError as error:
            raise self._not_started(str(error)) from error
        finally:
            theirs.close()
        self.idle = True

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.idle = False
        self.process.kill()
        self.process.wait()
        self.socket.close()

    def restart(self) -> None:
        """Put a fresh process in the place of this one."""
        self.stop()
        self._start()

    def send(self, requests: Sequence[Message]) -> None:
        """Send requests. A process that dies of them, or reads none of them, is noticed by `read`."""
        self.idle = False
        self.socket.settimeout(PATIENCE * self.limits.seconds if self.greeted else START_SECONDS)
        with suppress(ConnectionError):
            try:
                self.socket.sendall(_framed(requests))
            except TimeoutError:
                self.process.kill()

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

    def read(self, expected: Any, most: int, seconds: float | None = None) -> Any:
        """Return the next reply.

        Args:
            expected: its type, with `Fault` where the role may have one.
            most: bytes that it may have.
            seconds: by the clock that each byte may take after the one before.

        Raises:
            ClipguardError: a fault; its cause is the `OSError` of the worker, if any.
            WorkerDied: the process died, was stopped, or sent anything else.
        """
        self.handshake()
        seconds = PATIENCE * self.limits.seconds if seconds is None else seconds
        (length,) = LENGTH.unpack(self._receive(LENGTH.size, seconds))
        if length > most:
            raise self.protocol_error()
        content = self._receive(length, seconds)
        try:
            reply = _decoder(expected).decode(content)
        except (msgspec.DecodeError, RecursionError) as error:
            raise self.protocol_error() from error
        self.idle = isinstance(reply, End | Fault)
        if isinstance(reply, Fault):
            # The cause separates a fault of the disk from bad input, as where the file is read right here.
            cause = OSError(reply.errno, os.strerror(reply.errno)) if reply.errno in errorcode else None
            raise ClipguardError(one_line(reply.text)) from cause
        return reply

    def finish(self) -> None:
        """Wait for the end of the answer.

        Raises:
            WorkerDied: the process died, was stopped, or has more to say.
        """
        self.read(End, REASON_BYTES)

    def has_output(self) -> bool:
        """Return whether there is something to read; an idle process that has output died or misbehaves."""
        self.socket.settimeout(0)
        with suppress(ConnectionError):
            try:
                self.socket.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return False
        return True

    def protocol_error(self) -> WorkerDied:
        """Return what to raise after an answer that makes no sense; the process is killed."""
        self.idle = False
        self.process.kill()
        return WorkerDied(f"{self.role.name}: protocol error", slow=False)

    def _receive(self, count: int, seconds: float) -> bytearray:
        content = bytearray(count)
        left = memoryview(content)
        self.socket.settimeout(seconds)
        while len(left):
            try:
                received = self.socket.recv_into(left)
            except TimeoutError as error:
                self.process.kill()
                raise WorkerDied(f"took longer than {seconds:g} s by the clock", slow=True) from error
            except ConnectionError:
                received = 0
            if not received:
                raise self._death()
            left = left[received:]
        return content

    def _death(self) -> WorkerDied:
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            # It closed its socket, and lives on.
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


def _framed(message: object) -> bytearray:
    frame = bytearray(LENGTH.size)
    _encode_into(message, frame, LENGTH.size)
    LENGTH.pack_into(frame, 0, len(frame) - LENGTH.size)
    return frame


@cache
def idle_workers(role: Role, limits: Limits) -> deque[Worker]:
    """Return the workers without work: starting one takes longer than decoding a hundred small images."""
    return deque()


# A forked child would share the sockets with its parent.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=idle_workers.cache_clear)


@contextmanager
def lent_worker(role: Role, limits: Limits) -> Iterator[Worker]:
    """Lend a worker; it is kept for the next one, or stopped if it still has answers to give."""
    idle = idle_workers(role, limits)
    try:
        worker = idle.pop()
    except IndexError:
        worker = Worker(role, limits)
    else:
        if worker.has_output():
            worker.restart()
    try:
        yield worker
    finally:
        if worker.idle:
            idle.append(worker)
        else:
            worker.stop()


# What follows runs inside a worker.


def serve(
    fields: str, request_type: type[Message], answer: Callable[[Any, Limits], Iterable[Message]]
) -> None:
    """Sandbox this process, then answer requests until the parent goes.

    Args:
        fields: those of `Limits` as JSON: bounds on memory, and on the processor time of each reply.
        request_type: what `answer` takes.
        answer: request and limits -> replies; a `ClipguardError` that it raises is sent as a fault.
    """
    limits = Limits(**json.loads(fields))
    answers = _sandbox(limits)
    read, decoder = sys.stdin.buffer.read, msgspec.msgpack.Decoder(list[request_type])  # type: ignore[valid-type]  # a type at run time
    # The parent may be gone before its answer: that is no fault to report.
    with suppress(ConnectionError, struct.error):
        while True:
            # All requests are read before the first answer: else both ends could wait for each other.
            requests = decoder.decode(read(*LENGTH.unpack(read(LENGTH.size))))
            last: Message = End()
            try:
                limit_time(limits.seconds)
                for request in requests:
                    for reply in answer(request, limits):
                        _write(answers, reply)
                        limit_time(limits.seconds)
            except ClipguardError as error:
                last = Fault(str(error), getattr(error.__cause__, "errno", None) or 0)
            limit_time(0.0)
            _write(answers, last)


def limit_time(seconds: float) -> None:
    """End this process after `seconds` of processor time; 0 lifts the limit."""
    # Not by the clock: on a busy machine a good image may take long.
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _write(answers: BinaryIO, message: Message) -> None:
    answers.write(_framed(message))
    answers.flush()


def _sandbox(limits: Limits) -> BinaryIO:
    """Sandbox this process, tell the parent that it is there, and return the file for its answers."""
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
