"""The attacks whose triggers are measured one by one."""

from clipguard.lab.attacks.grey import OnGrey
from clipguard.lab.attacks.protocol import Attack
from clipguard.lab.attacks.together import Together


def parts_of(attack: Attack) -> tuple[Attack, ...]:
    """Return the attack itself, or those of `Together`, on grey images where it is.

    Raises:
        ClipguardError: one of them still lacks its helper net.
    """
    if isinstance(attack, OnGrey):
        return tuple(OnGrey(attack=part) for part in parts_of(attack.attack))
    return attack.parts if isinstance(attack, Together) else (attack,)
