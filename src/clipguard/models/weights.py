"""Weights files (safetensors): the header is read before anything of its size is built; never unpickled."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from clipguard.errors import ClipguardError, reason_of

if TYPE_CHECKING:
    from torch import Tensor

# Beside its own error, safetensors raises these for types that torch lacks and for damaged headers.
SAFETENSORS_ERRORS = (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, MemoryError)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        # Opening a pipe that nobody writes to never ends.
        if path.exists() and not path.is_file():
            raise OSError("it is no regular file")
        yield
    except SAFETENSORS_ERRORS as error:
        raise ClipguardError(f"model {path} cannot be read as safetensors: {reason_of(error)}") from error


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor, from the header alone.

    Raises:
        ClipguardError: not a whole safetensors file.
    """
    with _reading(path), safe_open(path, framework="pt") as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118  # no mapping: it has keys() alone


def metadata(path: Path) -> dict[str, str]:
    """Return the texts of the header.

    Raises:
        ClipguardError: not a whole safetensors file.
    """
    with _reading(path), safe_open(path, framework="pt") as opened:
        return dict(opened.metadata() or {})


def state(path: Path) -> "dict[str, Tensor]":
    """Return the tensors.

    Raises:
        ClipguardError: not a whole safetensors file, or NaN or Inf among the numbers.
    """
    from safetensors.torch import load_file

    with _reading(path):
        tensors: dict[str, Tensor] = load_file(path)
        bad = [name for name, value in tensors.items() if not _finite(value)]
    if bad:
        raise ClipguardError(f"model {path} has NaN or Inf weights in {bad[0][:200]!r}")
    return tensors


def _finite(value: "Tensor") -> bool:
    if value.is_complex():
        raise TypeError("complex numbers")
    return not value.is_floating_point() or math.isfinite(float(value.float().abs().sum()))
