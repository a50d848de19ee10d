"""Class names: what the guide reads, so that they are never guessed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from clipguard.data.labels import numbers_of
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


def _listed(names: Sequence[Any], listing: Listing, origin: str) -> Sequence[Any]:
    """Return the names of a list in class order: those of numbered classes by their numbers.

    Raises:
        ClipguardError: it cannot be told which name is whose.
    """
    keys = listing.keys or listing.names
    if keys is None or len(keys) != len(names):
        return names
    numbers = numbers_of(keys)
    least = min(numbers or [2])
    if numbers and least < 2 and sorted(numbers) == list(range(least, least + len(keys))):
        return [names[number - least] for number in numbers]
    if numbers and numbers != sorted(numbers):
        raise ClipguardError(
            f"the classes of {listing.location} are numbers in another order ({', '.join(keys[:4])}, ...) "
            f"and some are missing: give {origin} as a .json object with a name for each"
        )
    own = [_plain(key) for key in keys]
    for key, name in zip(keys, names, strict=True):
        if isinstance(name, str) and _plain(name) != _plain(key) and _plain(name) in own:
            raise ClipguardError(
                f"{origin} calls class {key!r} of {listing.location} {name!r}, which is another of its "
                f"classes: put the names in this order: {', '.join(keys)[:200]}; or give a .json object"
            )
    return names


def _plain(name: str) -> str:
    return name.strip().casefold().replace("_", " ")


def naming_note(listing: Listing, classes: Classes | None, names: Sequence[str]) -> tuple[str, ...]:
    """Return which class has which name, as one sentence, where a list names classes that had names."""
    keys = listing.keys or listing.names
    if classes is None or keys is None or isinstance(classes, Mapping):
        return ()
    pairs = [(key, name) for key, name in zip(keys, names, strict=True) if _plain(key) != _plain(name)]
    if not pairs:
        return ()
    few = ", ".join(f"{key!r} is {name!r}" for key, name in pairs[:4])
    return (f"class names were given for those of {listing.location}: {few}{', ...' * (len(pairs) > 4)}",)


def class_names(listing: Listing, classes: Classes | None, limits: Limits) -> tuple[str, ...]:
    """Return one readable name a class: from `classes` if given, otherwise the source's own.

    Raises:
        ClipguardError: no names anywhere, an unreadable file, a blank or much too long name, or another
            number or order of names than the source's.
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
    elif isinstance(names, Sequence):
        names = _listed(names, listing, origin)
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
