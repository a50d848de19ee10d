"""What stands in for packages that a machine with nothing but torch and numpy lacks, for tools/gpu_check.py.

Only what is never called there: annotations, files, locks, limits. A check that needs the real one is left
out, and says so.
"""

import importlib
import sys
from contextlib import nullcontext
from types import ModuleType
from typing import Any


class _Anything(type):
    def __getitem__(cls, _: object) -> Any:
        return Any


class Annotation(metaclass=_Anything):
    """A type of jaxtyping's, which takes a shape."""


class NotThereError(Exception):
    """Stands for exceptions of a package that is not there."""


def _absent(*_: object, **__: object) -> Any:
    raise ImportError("a stand-in was called: this check needs the real package")


def _module(name: str, **attributes: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(attributes)
    return module


def _jaxtyping() -> ModuleType:
    types = ("Bool", "Float", "Float32", "Float64", "Int64", "Shaped", "UInt8")
    return _module("jaxtyping", **dict.fromkeys(types, Annotation))


_STAND_INS = {
    "jaxtyping": _jaxtyping,
    "threadpoolctl": lambda: _module("threadpoolctl", threadpool_limits=lambda *_, **__: nullcontext()),
    "filelock": lambda: _module("filelock", FileLock=_absent, Timeout=NotThereError),
    "safetensors": lambda: _module("safetensors", SafetensorError=NotThereError, safe_open=_absent),
    "safetensors.torch": lambda: _module(
        "safetensors.torch", save=_absent, load_file=_absent, save_file=_absent
    ),
}


def missing(*packages: str) -> list[str]:
    """Return those of the packages that cannot be imported, or that have a stand-in."""
    out = []
    for name in packages:
        try:
            module = importlib.import_module(name)
        except Exception:  # a broken installation can raise anything
            out.append(name)
        else:
            out += [] if getattr(module, "__spec__", None) else [name]
    return out


def install() -> list[str]:
    """Put stand-ins where packages are missing and return their names."""
    absent = missing(*_STAND_INS)
    for name in absent:
        sys.modules[name] = _STAND_INS[name]()
    return absent
