"""TOML values to frozen dataclasses by msgspec: unknown keys and wrong types are refused, never ignored."""

import re
from dataclasses import asdict, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec

from clipguard.errors import ClipguardError, reason_of

Kind = TypeVar("Kind")


def read_as(kind: type[Kind], values: dict[str, Any], where: str, default: Kind | None = None) -> Kind:
    """Return a TOML table as the dataclass `kind`; missing keys come from `default`, or its own defaults.

    Raises:
        ClipguardError: an unknown or missing key, or a value of another type; `where` is named.
    """
    # A type variable cannot be bound to "any dataclass", so that mypy does not know that `asdict` takes it.
    merged = values if default is None else _merged(asdict(default), values)  # type: ignore[call-overload]  # a dataclass
    try:
        read = msgspec.convert(merged, kind)
    except msgspec.ValidationError as error:
        raise ClipguardError(f"{where}: {reason_of(error)}{_choices(kind, str(error))}") from error
    _refuse_unknown(values, read, where)
    return read


def _merged(default: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return the default with what `values` change; tables within are merged likewise."""
    pairs = {key: (default.get(key), value) for key, value in values.items()}
    return default | {
        key: _merged(old, new) if isinstance(old, dict) and isinstance(new, dict) else new
        for key, (old, new) in pairs.items()
    }


def _refuse_unknown(values: Any, read: Any, where: str) -> None:
    """Refuse the keys that msgspec has passed over, which it does for dataclasses."""
    if is_dataclass(read):
        names = [field.name for field in fields(read)]
        for key, value in values.items():
            if key not in names:
                raise ClipguardError(f"{where}: unknown key {key!r}: give one of {', '.join(names)}")
            _refuse_unknown(value, getattr(read, key), f"{where}, key {key}")
    elif isinstance(read, tuple):
        for number, (value, entry) in enumerate(zip(values, read, strict=True)):
            _refuse_unknown(value, entry, f"{where}[{number}]")


def _choices(kind: Any, message: str) -> str:
    """Return what a `Literal` allows, which msgspec does not say."""
    path = re.fullmatch(r"Invalid enum value .* - at `\$\.([\w.]+)`", message)
    for name in path[1].split(".") if path else ():
        kind = get_type_hints(kind)[name]
    return f": give one of {', '.join(map(str, get_args(kind)))}" if path else ""
