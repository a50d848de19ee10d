"""Whether a host answers at all: tried once, before a download retries for minutes."""

import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import Final

# Importing torch takes some seconds as well: a missing network is reported within ten.
PATIENCE: Final = 4.0
"""Seconds that a host has for its first answer."""


def answers(status: Callable[[], int], seconds: float = PATIENCE) -> bool:
    """Return whether a request is answered in time by the host rather than by a proxy without a way out.

    The request runs in a thread, because a socket's time-out holds for each address in turn and not for the
    look-up of the name.

    Args:
        status: sends the request and returns its HTTP status. What it raises counts as no answer.
        seconds: how long to wait.
    """
    statuses: list[int] = []

    def request() -> None:
        with suppress(Exception):
            statuses.append(status())

    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(seconds)
    # Such proxies answer 502 to 504. The download itself explains any other status.
    return bool(statuses) and statuses[0] < 500


def head_status(url: str) -> int:
    """Return the HTTP status of a HEAD request.

    Raises:
        OSError: no answer.
        ValueError: `url` is none.
    """
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
