"""Pillow kept off the terminal: what it says about damaged files stands in the list of unreadable images."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Without any handler, Python prints what Pillow logs on stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Return a block in which Pillow's warnings are dropped."""
    with warnings.catch_warnings():
        # Only Pillow's: other threads share the filters.
        warnings.filterwarnings("ignore", module=r"PIL\b")
        yield
