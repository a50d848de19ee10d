"""From arguments to an exit code: one line on stderr for every fault, one object on stdout for `--json`."""

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import FrameType
from typing import Any, Final

from cyclopts import CycloptsError

from clipguard.cli.arguments import check_arguments
from clipguard.cli.commands import app, guide_check, guide_clean
from clipguard.cli.config_file import config_path, configured
from clipguard.cli.outcome import ERROR, SCHEMA_VERSION, Outcome
from clipguard.cli.process import escape_unwritable, keep_freed_memory, wait_asleep
from clipguard.errors import ClipguardError, fault_of, one_line

DEBUG: Final = "CLIPGUARD_DEBUG"
"""If set in the environment, an internal error shows its trace; `--verbose` does the same."""
INTERRUPTED: Final = 128 + signal.SIGINT
TERMINATED: Final = 128 + signal.SIGTERM
"""As shells report a process that the signal ended."""
WITHOUT_STAGES: Final = (guide_check, guide_clean)
"""Commands that keep nothing of what they have done so far."""


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
    call = Call(list(sys.argv[1:] if argv is None else argv))
    try:
        with _terminable():
            return call.run()
    except BrokenPipeError:
        # The reader of our output has gone. Without this, Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ERROR
    except KeyboardInterrupt:
        return call.fail("interrupted", f"interrupted: {call.what_is_next}", INTERRUPTED)
    except _Terminated:
        return call.fail("interrupted", f"terminated by SIGTERM: {call.what_is_next}", TERMINATED)
    except Exception as error:
        # Python's own exit code for it, 1, is that of a suspicious data set.
        kind, text = _fault(error)
        if kind == "internal" and (os.environ.get(DEBUG) or call.verbose):
            traceback.print_exc()
        return call.fail(kind, text)


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


def _fault(error: Exception) -> tuple[str, str]:
    """Return the kind of an error, as error objects name it, and its line."""
    match error:
        case CycloptsError():
            return "usage", f"{error} (see clipguard --help)"
        case ClipguardError():
            return "input", str(error)
        case OSError():
            return "system", fault_of(error)
        case MemoryError():
            return "system", "out of memory: free some, take fewer --rows, or lower the --limits"
    name = type(error).__name__
    shows = f"{DEBUG}=1 or --verbose shows where"
    return "internal", f"internal error, {name}: {error} (of clipguard or a model's code: {shows})"


class Call:
    """One command line, and what is known of it when it fails."""

    def __init__(self, arguments: list[str]) -> None:
        self._arguments = arguments
        self._as_json = asks_for_json(arguments)
        self.verbose = False
        self.what_is_next = "the same command resumes where it stopped"

    def run(self) -> int:
        """Return the exit code, after the result is printed.

        Raises:
            ClipguardError: no command, or what the command raises.
            CycloptsError: wrong usage.
        """
        if not self._arguments:
            # Not the help and 0: to a script, 0 says that a data set is clean.
            raise ClipguardError("no command: give one, such as scan (see clipguard --help)")
        check_arguments(self._arguments)
        app.config = configured(config_path(self._arguments))
        command, bound, _ = app.parse_args(self._arguments, print_error=False, exit_on_error=False)
        if command in WITHOUT_STAGES:
            self.what_is_next = "the same command starts from the beginning"
        values = (*bound.args, *bound.kwargs.values())
        self._as_json |= any(getattr(value, "json", False) for value in values)
        self.verbose = any(getattr(value, "verbose", False) for value in values)
        outcome = command(*bound.args, **bound.kwargs)
        if not isinstance(outcome, Outcome):  # --help and --version print for themselves
            return 0
        if outcome.as_json:
            _print_json(outcome.value)
        else:
            from rich.console import Console

            outcome.show(Console(highlight=False))
        sys.stdout.flush()
        return outcome.code

    def fail(self, kind: str, text: str, code: int = ERROR) -> int:
        """Return the exit code, after one line on stderr and, for `--json`, one object on stdout."""
        line = one_line(text)
        sys.stderr.write(f"clipguard: {line}\n")
        if self._as_json:
            with contextlib.suppress(OSError):
                _print_json({"error": {"kind": kind, "message": line, "exit_code": code}})
                sys.stdout.flush()
        return code


def asks_for_json(arguments: Sequence[str]) -> bool:
    """Return whether the arguments ask for JSON, as far as that shows before they are understood."""
    before = arguments[: arguments.index("--")] if "--" in arguments else arguments
    formats = [text.removeprefix("--format=") for text in before if text.startswith("--format=")]
    formats += [after for text, after in pairwise(before) if text == "--format"]
    return "--json" in before or any("json" in text.split(",") for text in formats)


def _print_json(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"schema_version": SCHEMA_VERSION, **value}, allow_nan=False) + "\n")
