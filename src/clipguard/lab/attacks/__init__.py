"""Attacks that put a backdoor into a data set, and controls that do not."""

from clipguard.lab.attacks.combined import Together
from clipguard.lab.attacks.greyscale import fit_attack, parts_of
from clipguard.lab.attacks.learned import LearnedAttack
from clipguard.lab.attacks.protocol import Attack, triggered
from clipguard.lab.attacks.registry import ATTACKS, attack_named, refuse_general

__all__ = [
    "ATTACKS",
    "Attack",
    "LearnedAttack",
    "Together",
    "attack_named",
    "fit_attack",
    "parts_of",
    "refuse_general",
    "triggered",
]
