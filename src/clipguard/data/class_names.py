"""Class names: what the guide reads, so that they are never guessed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from clipguard.data.listing import Listing, fault, printable
from clipguard.errors import ClipguardError
from clipguard.safety.limits import Limits, parse_json, read_bounded

Classes = str | Path | Sequence[str] | Mapping[str, str]


def _read(path: Path, limits: Limits) -> Any:
    try:
        text = read_bounded(path, limits.json_bytes).decode("utf-8-sig")
        return parse_json(text, limits) if path.suffix.lower() == ".json" else text.strip().splitlines()
    except (OSError, ValueError) as error:
        raise ClipguardError(f"class names {path} cannot be read: {fault(error)}") from error


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


def class_names(listing: Listing, classes: Classes | None, limits: Limits) -> tuple[str, ...]:
    """Return one readable name a class: from `classes` if given, otherwise the source's own.

    Raises:
        ClipguardError: no names anywhere, an unreadable file, a blank or much too long name, or another
            number of names than the source's.
    """
    if classes is None:
        if listing.names is None:
            raise ClipguardError(
                f"{listing.location} does not name its classes: give classes, such as names.txt or names.json"
            )
        return _bounded([printable(name) for name in listing.names], listing.location, limits)
    from_file = isinstance(classes, (str, Path))
    origin = f"class names {classes}" if from_file else "classes"
    names = _read(Path(str(classes)), limits) if from_file else classes
    if isinstance(names, Mapping):
        names = _mapped(names, listing.keys or listing.names, origin)
    if not isinstance(names, Sequence) or not all(isinstance(name, str) and name.strip() for name in names):
        raise ClipguardError(f"{origin} must be a list of names, none of them blank")
    if listing.names is not None and len(names) != len(listing.names):
        raise ClipguardError(
            f"{origin} has {len(names)} names but {listing.location} has {len(listing.names)} classes"
        )
    return _bounded([printable(name.strip()) for name in names], origin, limits)


def _bounded(names: list[str], origin: str, limits: Limits) -> tuple[str, ...]:
    if len(names) > limits.classes:
        raise ClipguardError(
            f"{origin} has {len(names)} class names, more than the limit of {limits.classes}"
        )
    longest = max(names, key=len, default="")
    if len(longest) > limits.name_length:
        raise ClipguardError(
            f"{origin} has a class name of {len(longest)} characters, {longest[:20]!r}...: shorten it"
        )
    return tuple(names)


GTSRB_NAMES: Final = tuple(Path(__file__).with_name("gtsrb_names.txt").read_text().splitlines())
"""The 43 classes of GTSRB in words that a guide can read: what the sign looks like, and what it means."""
