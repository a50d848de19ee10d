"""Weights files (safetensors): the header is read before anything of its size is built; never unpickled."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from safetensors import SafetensorError, safe_open

from clipguard.errors import ClipguardError, reason_of
from clipguard.models.foreign import remedy_for

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
        if remedy := remedy_for(path):
            raise ClipguardError(f"model {path} is {remedy}") from error
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


PREFIXES: Final = ("module.", "model.", "backbone.", "net.", "network.", "encoder.", "_orig_mod.")
"""What wrappers of a net put before the names of its weights: data-parallel and compiled nets, trainers."""

BESIDE_A_MODEL: Final = (
    *("criterion.", "loss.", "loss_fn.", "optimizer.", "teacher."),
    *("ema.", "ema_model.", "model_ema.", "module_ema.", "teacher_model.", "averaged_model."),
)
"""What trainers save beside a net: its loss, and second nets, of which it is not known which is meant."""

_Shapes = dict[str, tuple[int, ...]]


def fitting_prefix(expected: _Shapes, claimed: _Shapes) -> tuple[str, list[str]]:
    """Return the prefix without which all claimed names fit, and no names; else "" and the wrong names.

    BatchNorm's counter `num_batches_tracked` may be missing: no result depends on it, and not all files have
    it.
    """
    prefix, wrong = "", _wrong(expected, claimed)
    while longer := next((prefix + one for one in PREFIXES if _all_start(claimed, prefix + one)), ""):
        prefix = longer
        if not _wrong(expected, {name.removeprefix(prefix): shape for name, shape in claimed.items()}):
            return prefix, []
    return "", wrong


def common_prefix(names: Iterable[str]) -> str:
    """Return what of `PREFIXES` stands, one after the other, before all names; empty for nothing."""
    prefix, listed = "", list(names)
    while longer := next((prefix + p for p in PREFIXES if all(n.startswith(prefix + p) for n in listed)), ""):
        if not listed:
            break
        prefix = longer
    return prefix


def _all_start(names: _Shapes, prefix: str) -> bool:
    return bool(names) and all(name.startswith(prefix) for name in names)


def _wrong(expected: _Shapes, claimed: _Shapes) -> list[str]:
    missing = sorted(
        name for name in expected.keys() - claimed.keys() if name.rpartition(".")[2] != "num_batches_tracked"
    )
    return sorted([*missing, *(claimed.keys() - expected.keys())]) + sorted(
        name for name in expected.keys() & claimed.keys() if expected[name] != claimed[name]
    )


def beside_a_model(names: Iterable[str]) -> str | None:
    """Return the start of the first name that tells of something saved beside a net, if any."""
    return next((one for name in sorted(names) for one in BESIDE_A_MODEL if name.startswith(one)), None)


def _finite(value: "Tensor") -> bool:
    if value.is_complex():
        raise TypeError("complex numbers")
    return not value.is_floating_point() or math.isfinite(float(value.float().abs().sum()))
