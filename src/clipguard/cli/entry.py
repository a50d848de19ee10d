"""From arguments to an exit code: one line on stderr for every fault, one object on stdout for `--json`."""

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Final

from cyclopts import CycloptsError

from clipguard.cli.arguments import check_arguments
from clipguard.cli.commands import app
from clipguard.cli.outcome import ERROR, Outcome
from clipguard.cli.process import escape_unwritable, keep_freed_memory, wait_asleep
from clipguard.errors import ClipguardError, fault_of, one_line

DEBUG: Final = "CLIPGUARD_DEBUG"
"""If set in the environment, an internal error shows its trace."""
INTERRUPTED: Final = 128 + signal.SIGINT
TERMINATED: Final = 128 + signal.SIGTERM
"""As shells report a process that the signal ended."""


class _Terminated(BaseException):
    """SIGTERM has come."""


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code of a command line.

    `scan` and `defend`: that of the verdict (`EXIT_CODES`). `verify`: 1 when a file differs. The others: 0
    when they did their job. All: 2 for an error, wrong usage included, 130 when interrupted (Ctrl-C) and 143
    when terminated by SIGTERM.
    """
    keep_freed_memory()
    wait_asleep()
    escape_unwritable()
    try:
        with _terminable():
            return _run(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:
        # The reader of our output has gone. Without this, Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ERROR
    except KeyboardInterrupt:
        return _fail("interrupted: the same command resumes where it stopped", INTERRUPTED)
    except _Terminated:
        return _fail("terminated by SIGTERM: the same command resumes where it stopped", TERMINATED)
    except Exception as error:
        # Python's own exit code for it, 1, is that of a suspicious data set.
        if os.environ.get(DEBUG) and not isinstance(error, (CycloptsError, ClipguardError, OSError)):
            traceback.print_exc()
        return _fail(_fault(error))


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM leave the block as Ctrl-C does, so that what is half written is removed on the way."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # only the main thread may; whoever calls `main` in another decides for itself
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _fail(text: str, code: int = ERROR) -> int:
    sys.stderr.write(f"clipguard: {one_line(text)}\n")
    return code


def _fault(error: Exception) -> str:
    match error:
        case CycloptsError():
            return f"{error} (see clipguard --help)"
        case ClipguardError():
            return str(error)
        case OSError():
            return fault_of(error)
        case MemoryError():
            return "out of memory: free some, take fewer --rows, or lower the --limits"
    name = type(error).__name__
    return f"internal error, {name}: {error} (of clipguard or a model's code: {DEBUG}=1 shows where)"


def _run(arguments: list[str]) -> int:
    if not arguments:
        # Not the help and 0: to a script, 0 says that a data set is clean.
        raise ClipguardError("no command: give one, such as scan (see clipguard --help)")
    check_arguments(arguments)
    command, bound, _ = app.parse_args(arguments, print_error=False, exit_on_error=False)
    outcome = command(*bound.args, **bound.kwargs)
    if not isinstance(outcome, Outcome):  # --help and --version print for themselves
        return 0
    if outcome.as_json:
        sys.stdout.write(json.dumps(outcome.value, allow_nan=False) + "\n")
    else:
        from rich.console import Console

        outcome.show(Console(highlight=False))
    sys.stdout.flush()
    return outcome.code
