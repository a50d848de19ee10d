"""Whether a host answers at all: tried once, before a download retries for minutes."""

import threading
from contextlib import suppress
from typing import Final

# Importing torch takes some seconds as well: a missing network is reported within ten.
PATIENCE: Final = 4.0
"""Seconds that a host has for its first answer."""


def answers(url: str, seconds: float = PATIENCE) -> bool:
    """Return whether a request is answered in time by the host rather than by a proxy without a way out.

    The hub's client sends it, and so goes by the user's proxies. It runs in a thread, because a socket's
    time-out holds for each address in turn and not for the look-up of the name.
    """
    from huggingface_hub import get_session

    statuses: list[int] = []

    def request() -> None:
        # Whatever is raised counts as no answer.
        with suppress(Exception):
            statuses.append(int(get_session().head(url, timeout=seconds).status_code))

    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(seconds)
    # Such proxies answer 502 to 504. The download itself explains any other status.
    return bool(statuses) and statuses[0] < 500
