"""Attacks that plant a backdoor in a data set, and controls that plant none; one line each in `ATTACKS`."""

from collections.abc import Callable

from clipguard.attacks.controls import FlipsToOneClass, NoAttack, SymmetricFlips
from clipguard.attacks.flip import FLIP
from clipguard.attacks.gcb import GCB
from clipguard.attacks.images import SIG, BadNets, Blended
from clipguard.attacks.input_aware import InputAware
from clipguard.attacks.label_consistent import LabelConsistent
from clipguard.attacks.protocol import Attack, NeedsHelper, prepare
from clipguard.attacks.ssba import SSBA
from clipguard.errors import ClipguardError

ATTACKS: dict[str, Callable[..., Attack | NeedsHelper]] = {
    "badnets": BadNets,
    "blended": Blended,
    "sig": SIG,
    "lc": LabelConsistent,
    "ssba": SSBA,
    "input-aware": InputAware,
    "flip": FLIP,
    "gcb": GCB,
    "none": NoAttack,
    "flips": SymmetricFlips,
    "flips-to-one": FlipsToOneClass,
}


def attack_named(name: str, *, rate: float = 0.05, target: int = 0) -> Attack | NeedsHelper:
    """Return the attack of that name with its published defaults.

    Raises:
        ClipguardError: there is no attack of that name, or the rate is outside (0, 1).
    """
    if name not in ATTACKS:
        raise ClipguardError(f"unknown attack {name!r}: choose one of {', '.join(ATTACKS)}")
    if not 0 < rate < 1:
        raise ClipguardError(f"poison rate {rate} is outside (0, 1): give a fraction such as 0.05")
    return ATTACKS[name](rate=rate, target=target)


__all__ = ["ATTACKS", "Attack", "NeedsHelper", "attack_named", "prepare"]
