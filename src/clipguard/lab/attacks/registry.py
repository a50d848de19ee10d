"""Attacks by name, with their options checked."""

from collections.abc import Callable, Collection
from dataclasses import fields
from importlib import import_module
from typing import Any, Final

from clipguard.errors import ClipguardError
from clipguard.lab.attack_names import ATTACK_CLASSES
from clipguard.lab.attacks.combined import TOGETHER, Together
from clipguard.lab.attacks.protocol import Attack


def _attack_class(place: str) -> Callable[..., Attack]:
    module, name = place.split(":")
    made: Callable[..., Attack] = getattr(import_module(f"clipguard.lab.attacks.{module}"), name)
    return made


ATTACKS: Final = {name: _attack_class(place) for name, place in ATTACK_CLASSES.items()}


def attack_named(name: str, *, rate: float | None = None, target: int = 0, **options: object) -> Attack:
    """Return the attack of that name; what is not given has its published default.

    Args:
        name: one of `ATTACKS`, or `together:A+B` for several at once, which lead to `target`, `target` + 1
            and so on, and all get the other arguments.
        rate: fraction of all samples that are poisoned.
        target: class that the backdoor leads to.
        options: other fields of the attack, such as `mapping`.

    Raises:
        ClipguardError: there is no attack of that name, it has no such option, or the rate is outside (0, 1).
    """
    if name.startswith(TOGETHER):
        names = name.removeprefix(TOGETHER).split("+")
        parts = [attack_named(part, rate=rate, target=target + i, **options) for i, part in enumerate(names)]
        return Together(attacks=tuple(parts))
    if name not in ATTACKS:
        raise ClipguardError(f"unknown attack {name!r}: choose one of {', '.join(ATTACKS)}")
    if rate is not None and not 0 < rate < 1:
        raise ClipguardError(f"poison rate {rate} is outside (0, 1): give a fraction such as 0.05")
    rates = {} if rate is None else {"rate": rate}
    return ATTACKS[name](target=target, **rates, **_checked(name, options))


def refuse_general(options: Collection[str]) -> None:
    """Refuse options that every attack has under a key of its own.

    Raises:
        ClipguardError: one of them is such an option.
    """
    if general := sorted({"name", "rate", "target"} & set(options)):
        raise ClipguardError(
            f"{general[0]} is no setting of one attack's own: give it as {general[0]} itself"
        )


def _several(value: object) -> tuple[int, ...] | None:
    """Return the numbers of a list, or of a text such as "1,12"; None for anything else."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or len(parts) < 2:
        return None
    whole = [
        part for part in parts if type(part) is int or (isinstance(part, str) and part.strip().isdecimal())
    ]
    return tuple(map(int, whole)) if len(whole) == len(parts) else None


def _checked(name: str, options: dict[str, object]) -> dict[str, object]:
    """Return the options of an attack, whole numbers as fractions where it takes fractions."""
    attack: Any = ATTACKS[name]
    # A field that takes no part in comparisons is none to choose: it holds what a fit learned.
    own = [field for field in fields(attack) if field.compare and field.name not in ("rate", "target")]
    defaults = {field.name: field.default for field in own}
    checked = {}
    for option, value in options.items():
        if option not in defaults:
            valid = f"choose from {', '.join(sorted(defaults))}" if defaults else "it takes none"
            raise ClipguardError(f"attack {name} has no option {option!r}: {valid}")
        kind = type(defaults[option])
        several = _several(value) if option in getattr(attack, "several", ()) else None
        checked[option] = float(value) if kind is float and type(value) is int else several or value
        if type(checked[option]) is not kind and several is None:
            raise ClipguardError(
                f"option {option} of attack {name} is {value!r}: give one like {defaults[option]!r}"
            )
    return checked
