"""TOML values to frozen dataclasses: unknown keys and wrong types are refused, never ignored."""

import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from clipguard.errors import ClipguardError


def read_as(kind: Any, value: Any, where: str, default: Any = None) -> Any:
    """Return a TOML value as `kind`: a number, text, `Literal`, tuple, dataclass, or one of several of them.

    A table is a dataclass whose missing keys come from `default`, or else from the fields' own defaults; a
    text stands for a table that has only a `name`.

    Raises:
        ClipguardError: an unknown or missing key, or a value of another type; `where` is named.
    """
    if isinstance(kind, type) and is_dataclass(kind):
        return _table(kind, value, where, default)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value, where, default)
    if origin is tuple:
        return _tuple(arguments, value, where)
    if origin is Literal:
        return _literal(arguments, value, where)
    if kind is Any or (origin is dict and isinstance(value, dict)):
        return value
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ClipguardError(f"{where}: {value!r} is no {_kind_word(kind)}: {_example(kind)}")
    return value


def _table(kind: Any, value: Any, where: str, default: Any) -> Any:
    known = {field.name: field for field in fields(kind) if field.init}
    if isinstance(value, str) and "name" in known:
        value = {"name": value}
    if not isinstance(value, Mapping):
        raise ClipguardError(f"{where}: {value!r} is no table: give {', '.join(known)}")
    if unknown := sorted(value.keys() - known.keys()):
        raise ClipguardError(f"{where}: unknown key {unknown[0]!r}: give one of {', '.join(known)}")
    hints = get_type_hints(kind)
    given = {
        key: read_as(hints[key], entry, f"{where}, key {key}", _default(known[key], default))
        for key, entry in value.items()
    }
    if default is not None:
        return replace(default, **given)
    needed = [key for key, field in known.items() if key not in given and _default(field, None) is MISSING]
    if needed:
        raise ClipguardError(f"{where}: key {needed[0]!r} is missing: add it")
    return kind(**given)


def _default(field: "Field[Any]", whole: Any) -> Any:
    """Return the default of a field: the table's own, or else the class's."""
    if whole is not None:
        return getattr(whole, field.name)
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def _one_of(kinds: tuple[Any, ...], value: Any, where: str, default: Any) -> Any:
    real = [kind for kind in kinds if kind is not type(None)]
    for kind in real[:-1]:
        try:
            return read_as(kind, value, where, default)
        except ClipguardError:
            continue
    return read_as(real[-1], value, where, default)


def _tuple(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ClipguardError(f"{where}: {value!r} is no list: write [...]")
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ClipguardError(f"{where}: {value!r} has {len(value)} entries, not {len(kinds)}")
    pairs = enumerate(zip(kinds, value, strict=True))
    return tuple(read_as(kind, entry, f"{where}[{number}]") for number, (kind, entry) in pairs)


def _literal(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value not in choices:
        raise ClipguardError(f"{where}: {value!r} is none of {', '.join(map(str, choices))}")
    return value


def _kind_word(kind: Any) -> str:
    return {float: "number", int: "whole number", str: "text", bool: "truth value"}.get(kind, "table")


def _example(kind: Any) -> str:
    examples = {float: "such as 0.05", int: "such as 3", str: 'such as "text"', bool: "true or false"}
    return "write a value " + examples.get(kind, "{key = value}")
