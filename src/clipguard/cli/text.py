"""Texts of the command line to values."""

import math
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from clipguard.errors import ClipguardError

SMALLEST, LARGEST = 8, 4096
SMALLEST_CROP = 0.1

T = TypeVar("T")


def parsed(parse: Callable[[str, str], T], text: str | None, option: str) -> T | None:
    """Return the value of an option that may be left out."""
    return None if text is None else parse(text, option)


def size_from(text: str, option: str) -> tuple[int, int]:
    """Return height and width of `HxW` or of `N`, which means a square.

    Raises:
        ClipguardError: another form, or a side outside 8..4096.
    """
    match = re.fullmatch(r"([0-9]{1,5})(?:[xX]([0-9]{1,5}))?", text)
    if match is None:
        raise ClipguardError(f"{option} {text!r}: give HEIGHTxWIDTH or one number, such as 64x48 or 32")
    height, width = int(match[1]), int(match[2] or match[1])
    if not (SMALLEST <= height <= LARGEST and SMALLEST <= width <= LARGEST):
        raise ClipguardError(f"{option} {text!r}: a side must have {SMALLEST} to {LARGEST} pixels")
    return height, width


def rows_from(text: str, option: str) -> tuple[int, int]:
    """Return first and one past the last row of `A:B`.

    Raises:
        ClipguardError: another form.
    """
    match = re.fullmatch(r"([0-9]{1,15}):([0-9]{1,15})", text)
    if match is None:
        raise ClipguardError(f"{option} {text!r}: give FIRST:END, such as 0:1000")
    return int(match[1]), int(match[2])


def settings_from(texts: Sequence[str], option: str) -> dict[str, object]:
    """Return the values of several `NAME=VALUE` by name: numbers and truth values as such, else texts.

    Raises:
        ClipguardError: another form, or a name given twice.
    """
    settings: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or name in settings:
            raise ClipguardError(f"{option} {text!r}: give each setting once, as in alpha=0.1")
        number = settings[name] = _value(value)
        if isinstance(number, float) and not math.isfinite(number):
            raise ClipguardError(f"{option} {text!r}: give a finite number")
    return settings


def _value(text: str) -> object:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def share_from(text: str, option: str) -> float:
    """Return a share of a side as a number.

    Raises:
        ClipguardError: no number in 0.1 to 1.
    """
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not SMALLEST_CROP <= share <= 1:
        raise ClipguardError(
            f"{option} {text!r}: give a share of the side, {SMALLEST_CROP} to 1, such as 0.875"
        )
    return share


def channels_from(text: str, option: str) -> tuple[float, float, float]:
    """Return the three numbers of `R,G,B`.

    Raises:
        ClipguardError: another form, or NaN or Inf.
    """
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        red = green = blue = math.nan
    if not all(map(math.isfinite, (red, green, blue))):
        raise ClipguardError(f"{option} {text!r}: give three numbers, such as 0.5,0.5,0.5")
    return red, green, blue
