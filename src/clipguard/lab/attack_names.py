"""Every attack by its name: one line each. Light, since the command line lists them without torch."""

from typing import Final

ATTACK_CLASSES: Final = {
    "badnets": "patterned:BadNets",
    "blended": "patterned:Blended",
    "wanet": "wanet_bpp:WaNet",
    "bpp": "wanet_bpp:BPP",
    "ctrl": "patterned:CTRL",
    "sig": "patterned:SIG",
    "lc": "label_consistent:LabelConsistent",
    "ssba": "ssba:SSBA",
    "input-aware": "input_aware:InputAware",
    "flip": "flip:FLIP",
    "gcb": "gcb:GCB",
    "adap-blend": "adaptive:AdapBlend",
    "adap-patch": "adaptive:AdapPatch",
    "trojan-nn": "trojan_nn:TrojanNN",
    "lf": "low_frequency:LowFrequency",
    "narcissus": "narcissus:Narcissus",
    "none": "controls:NoAttack",
    "flips": "controls:SymmetricFlips",
    "flips-to-one": "controls:FlipsToOneClass",
}
"""Module of `clipguard.lab.attacks` and class; controls without a trigger come last."""
