"""One rule of labels for all kinds of source: whole numbers and truth values are indices, texts are names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Int64, Shaped

from clipguard.errors import ClipguardError, reason_of

NUMERAL: Final = re.compile(r"(-?[0-9]{1,15})(?:\.0+)?")
NUMBERED: Final = re.compile(r"([^0-9]*)([0-9]{1,15})")
_FEW: Final = 1000
"""Labels that are looked at to see whether an array of objects holds texts."""

Texts = list[str]


@dataclass(frozen=True, slots=True)
class Labels:
    """Label numbers [n] and, where the source gave texts, the texts in the order of these numbers."""

    numbers: Int64[np.ndarray, "n"]
    names: tuple[str, ...] | None = None


def same_classes(first: Labels, second: Labels) -> Bool[np.ndarray, "n"]:
    """Tell of each sample whether two lists of labels give it the same class.

    Classes are compared by name where both lists have names: a class that was added in front moves the
    numbers of all others. A number without a name is no class.
    """
    one, other = first.numbers, second.numbers
    if first.names is not None and second.names is not None:
        places = {name: place for place, name in enumerate(dict.fromkeys((*first.names, *second.names)))}
        one, other = (_places(labels, places) for labels in (first, second))
    same: Bool[np.ndarray, ...] = (one == other) & (one >= 0)
    return same


def _places(labels: Labels, places: dict[str, int]) -> Int64[np.ndarray, "n"]:
    """Return the place of each label's name; -1 for a number without a name."""
    # One more at the end, where -1 and all that is too large leads.
    known = np.array([*(places[name] for name in labels.names or ()), -1], np.int64)
    inside = (labels.numbers >= 0) & (labels.numbers < len(known))
    places_of_labels: Int64[np.ndarray, ...] = known[np.where(inside, labels.numbers, -1)]
    return places_of_labels


def numbers_of(names: Sequence[str]) -> list[int] | None:
    """Return the numbers of names that are numbers, or one text and a number each; None for other names."""
    matches = [NUMBERED.fullmatch(name) for name in names]
    if not names or not all(matches) or len({match[1] for match in matches if match}) != 1:
        return None
    numbers = [int(match[2]) for match in matches if match]
    return numbers if len(set(numbers)) == len(numbers) else None


def in_order(names: Sequence[str]) -> list[str]:
    """Return names as text sorts them, but numbered ones (`numbers_of`) by number: 2 before 10."""
    numbers = numbers_of(names)
    if numbers is None:
        return sorted(names)
    return [name for _, name in sorted(zip(numbers, names, strict=True))]


def label_values(values: object, location: str) -> Int64[np.ndarray, "n"] | Texts:
    """Return labels as whole numbers or as texts without outer spaces.

    Raises:
        ClipguardError: null, fractional, mixed, one-hot or nested labels.
    """
    try:
        array: Shaped[np.ndarray, ...] = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ClipguardError(f"labels of {location} are no list of labels: {reason_of(error)}") from error
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ClipguardError(
            f"labels of {location} must be one integer a row, or one text, not {array.ndim}-dimensional "
            f"{array.dtype}: of one-hot labels, take the argmax"
        )
    if array.dtype == object:
        return _of_objects(array, location)
    if array.dtype.kind == "S":
        return _of_objects(array.astype(object), location)
    if array.dtype.kind == "U":
        return _texts(array.tolist(), location)
    return _whole(array, location)


def _of_objects(array: Shaped[np.ndarray, "n"], location: str) -> Int64[np.ndarray, "n"] | Texts:
    """Return the labels of an array of Python's objects, all of one kind."""
    values: list[Any] = array.tolist()
    nulls = [row for row, value in enumerate(values) if value is None or value != value]
    if nulls:
        raise ClipguardError(f"{location} has null labels, the first in row {nulls[0]}: drop these rows")
    if any(isinstance(value, (str, bytes)) for value in values[:_FEW]):
        return _texts(values, location)
    try:
        plain = np.array(values)
    except (ValueError, TypeError, OverflowError) as error:
        raise ClipguardError(f"labels of {location} are no list of labels: {reason_of(error)}") from error
    if plain.dtype == object or plain.ndim != 1:
        raise ClipguardError(f"labels of {location} must be one integer a row, or one text, not objects")
    return label_values(plain, location)


def _texts(values: list[Any], location: str) -> Texts:
    texts: Texts = []
    for row, value in enumerate(values):
        if isinstance(value, bytes):
            value = value.decode("utf-8", "backslashreplace")
        if not isinstance(value, str):
            raise ClipguardError(
                f"labels of {location} are texts and, in row {row}, {type(value).__name__}: give one kind"
            )
        if not value.strip():
            raise ClipguardError(f"{location} has null labels, the first in row {row}: drop these rows")
        texts.append(value.strip())
    return texts


def _whole(array: Shaped[np.ndarray, "n"], location: str) -> Int64[np.ndarray, "n"]:
    if array.size and array.dtype.kind not in "iubf":
        raise ClipguardError(
            f"labels of {location} must be one integer a row, or one text, not {array.dtype}"
        )
    if array.dtype.kind == "f":
        if (nulls := np.flatnonzero(np.isnan(array))).size:
            raise ClipguardError(f"{location} has null labels, the first in row {nulls[0]}: drop these rows")
        fractions = np.flatnonzero((array != np.round(array)) | (np.abs(array) > 2**53))
        if fractions.size:
            row = fractions[0]
            raise ClipguardError(
                f"labels of {location} must be one integer a row, or one text, not {array[row]} (row {row})"
            )
    return array.astype(np.int64)


def labels_of(values: object, location: str) -> Labels:
    """Return the labels of a whole source: texts that are all whole numbers count as such.

    Raises:
        ClipguardError: as `label_values`.
    """
    given = label_values(values, location)
    if isinstance(given, np.ndarray):
        return Labels(given)
    distinct, codes = np.unique(np.array(given, dtype=object), return_inverse=True)
    return of_codes(distinct.tolist(), codes.astype(np.int64))


def of_codes(distinct: list[str], codes: Int64[np.ndarray, "n"]) -> Labels:
    """Return the labels of texts that were counted: `codes` are indices into the distinct texts."""
    numerals = [NUMERAL.fullmatch(text) for text in distinct]
    if all(numerals):
        return Labels(np.array([int(match[1]) for match in numerals if match], np.int64)[codes])
    names = in_order(distinct)
    place = {name: number for number, name in enumerate(names)}
    return Labels(np.array([place[text] for text in distinct], np.int64)[codes], tuple(names))


def group_numbers(values: Sequence[Any], location: str) -> Int64[np.ndarray, "n"]:
    """Return a number for each group; a sample without a value is a group of its own.

    Raises:
        ClipguardError: values that are neither texts nor numbers.
    """
    numbers: dict[Any, int] = {}
    groups = np.empty(len(values), np.int64)
    for row, value in enumerate(values):
        if not (value is None or isinstance(value, (str, bytes, int, float, np.generic))):
            raise ClipguardError(
                f"groups of {location} must be texts or numbers, not {type(value).__name__} as in row {row}"
            )
        alone = value is None or value != value or value in ("", b"")
        groups[row] = numbers.setdefault(("row", row) if alone else value, len(numbers))
    return groups
