"""The package `adversarial-robustness-toolbox` (ART), which is optional."""

import importlib
import os
import sys
import tempfile
from typing import Any
from unittest import mock

from clipguard.errors import ClipguardError

_HOME = "USERPROFILE" if sys.platform == "win32" else "HOME"


def toolbox(module: str) -> Any:
    """Return a module of the toolbox, such as `defences`. The first one takes seconds to import.

    Raises:
        ClipguardError: the package is not installed.
    """
    try:
        if "art" not in sys.modules:
            # When it is imported, it writes settings into the user's home. Nothing here reads them.
            with tempfile.TemporaryDirectory() as home, mock.patch.dict(os.environ, {_HOME: home}):
                importlib.import_module("art")
        return importlib.import_module(f"art.{module}")
    except ImportError as error:
        raise ClipguardError(
            'this detector needs adversarial-robustness-toolbox: pip install "clipguard[rivals]"'
        ) from error
