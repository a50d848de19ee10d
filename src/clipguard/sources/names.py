"""Class names: what the guide reads, so that they are never guessed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipguard.errors import ClipguardError
from clipguard.sources.listing import Listing, first_line, printable

Classes = str | Path | Sequence[str] | Mapping[str, str]


def _read(path: Path) -> Any:
    try:
        text = path.read_text("utf-8-sig")
        if path.suffix.lower() != ".json":
            return text.strip().splitlines()
        return json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ClipguardError(f"class names {path} cannot be read: {first_line(error)}") from error


def _mapped(names: Mapping[Any, Any], keys: tuple[str, ...] | None, origin: str) -> list[Any]:
    """Return the names in class order, looked up by the source's own names or by label number."""
    if keys is not None and set(keys) <= names.keys():
        return [names[key] for key in keys]
    numbers = [str(label) for label in range(len(names))]
    if names.keys() == set(numbers):
        return [names[number] for number in numbers]
    missing = next((key for key in keys or numbers if key not in names), "0")
    raise ClipguardError(
        f"{origin} has no name for class {missing!r}: give one for each folder or label number"
    )


def class_names(listing: Listing, classes: Classes | None) -> tuple[str, ...]:
    """Return one readable name a class: from `classes` if given, otherwise the source's own.

    Raises:
        ClipguardError: no names anywhere, an unreadable file, a blank name, or a number unlike the source's.
    """
    if classes is None:
        if listing.names is None:
            raise ClipguardError(
                f"{listing.location} does not name its classes: pass --classes names.txt or names.json"
            )
        return tuple(printable(name) for name in listing.names)
    from_file = isinstance(classes, (str, Path))
    origin = f"class names {classes}" if from_file else "classes"
    given = _read(Path(str(classes))) if from_file else classes
    if isinstance(given, Mapping):
        given = _mapped(given, listing.keys, origin)
    if not isinstance(given, Sequence) or not all(isinstance(name, str) and name.strip() for name in given):
        raise ClipguardError(f"{origin} must be a list of names, none of them blank")
    if listing.keys is not None and len(given) != len(listing.keys):
        raise ClipguardError(
            f"{origin} has {len(given)} names but {listing.location} has {len(listing.keys)} classes"
        )
    return tuple(printable(name.strip()) for name in given)
