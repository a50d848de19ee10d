"""errors, the exception itself and how the sources raise it."""

import ast
import errno
import socket
from pathlib import Path

import pytest

from clipguard.errors import LONGEST_REASON, ClipguardError, fault_of, reason_of

SOURCES = sorted((Path(__file__).parents[1] / "src").rglob("*.py"))


def literal_text(node: ast.expr) -> str:
    """Return the constant parts of a string or f-string."""
    return "".join(
        part.value
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    )


def raised_messages(path: Path) -> list[tuple[int, str]]:
    """Return line and constant text of each `ClipguardError(...)` in the file."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [
        (call.lineno, literal_text(call.args[0]))
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "ClipguardError" and call.args
    ]


def test_the_error_says_exactly_what_it_was_given():
    with pytest.raises(ClipguardError) as caught:
        raise ClipguardError("no images under 'x': give a folder with one folder per class")
    assert str(caught.value) == "no images under 'x': give a folder with one folder per class"


def test_the_error_is_no_kind_of_programming_error_that_a_broad_except_would_swallow():
    assert ClipguardError.__mro__[1:] == (Exception, BaseException, object)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("bad\n\tvalue "), "bad value"),
        (ValueError("\u202egnp.exe"), "\\u202egnp.exe"),
        (MemoryError(), "MemoryError"),
        (OSError(" \n"), "OSError"),
    ],
)
def test_the_reason_of_an_error_is_its_message_in_one_line_or_its_type(error, reason):
    assert reason_of(error) == reason


@pytest.mark.parametrize("message", ["x" * 10_000, "\u202e" * 10_000, "a long line\n" * 1000])
def test_the_reason_of_an_error_is_bounded_and_says_that_it_was_cut(message):
    reason = reason_of(ValueError(message))
    assert len(reason) == LONGEST_REASON
    assert reason.endswith("...")


def test_a_fault_of_the_disk_names_the_file_and_what_to_do():
    assert fault_of(OSError(errno.ENOSPC, "", "out.npy")) == (
        "No space left on device (out.npy): free some space and run the same command again"
    )
    assert fault_of(OSError("the worker\nis gone")) == (
        "the worker is gone: set this right and run the same command again"
    )


def test_every_message_in_the_sources_is_one_line_without_a_closing_full_stop():
    messages = [(path.name, line, text) for path in SOURCES for line, text in raised_messages(path)]
    assert len(messages) >= 5
    bad = [entry for entry in messages if "\n" in entry[2] or entry[2].rstrip() != entry[2].rstrip(".\n ")]
    assert not bad


def test_tests_cannot_reach_other_machines():
    with pytest.raises(ConnectionRefusedError, match="must not leave"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(ConnectionRefusedError, match="must not leave"):
        socket.getaddrinfo("example.org", 443)


def test_tests_can_reach_their_own_machine():
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname(), timeout=5)
        with client:
            assert client.getpeername() == server.getsockname()
