"""Arguments that a shell made of something else: of a variable that is not set, or of a pattern."""

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from clipguard.errors import ClipguardError

_ONE_PATH: Final = ("scan", "defend", "attack")
_INCOMPLETE: Final = (("guide",),)
"""Commands that have commands of their own: not the help and 0, which would say that nothing stands out."""
_SHARDS: Final = (".parquet", ".tar")


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse arguments that are empty or too few, and several shards where one path is taken.

    An empty path would mean the current folder.

    Raises:
        ClipguardError: with what to write instead.
    """
    for place, argument in enumerate(arguments, 1):
        if not argument.strip() or (argument.startswith("--") and argument.endswith("=")):
            raise ClipguardError(
                f"argument {place} is empty ({argument!r}): a variable of the shell may not be set; "
                "give a value, or leave it out"
            )
    if tuple(arguments) in _INCOMPLETE:
        raise ClipguardError("no command of guide: give check or clean (see clipguard guide --help)")
    shards = [text for text in arguments[1:] if text.endswith(_SHARDS) and os.path.isfile(text)]
    options = {text for before, text in pairwise(arguments) if before[:1] == "-"}
    several = [text for text in shards if text not in options]
    if arguments[0] in _ONE_PATH and len(several) > 1:
        raise ClipguardError(
            f"{len(several)} files are given where one path is taken ({several[0]}, {several[1]}, ...): the "
            "shell expanded a pattern; put it in quotes, and clipguard reads all shards"
        )
