"""errors, the exception itself and how the sources raise it."""

import ast
import socket
from pathlib import Path

import pytest

from clipguard.errors import ClipguardError

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


def test_every_message_in_the_sources_is_one_line_without_a_closing_full_stop():
    found = [(path.name, line, text) for path in SOURCES for line, text in raised_messages(path)]
    assert len(found) >= 5
    bad = [entry for entry in found if "\n" in entry[2] or entry[2].rstrip() != entry[2].rstrip(".\n ")]
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
