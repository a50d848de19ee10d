"""Cleaning a guide that may carry a backdoor, on labelled images: CleanCLIP and ABD."""

from clipguard.clip.cleaning.fine_tuning import FineTuning
from clipguard.clip.cleaning.methods import Cleaning, Method, cleaned
from clipguard.clip.cleaning.packing import write_guide
from clipguard.clip.cleaning.patterns import Inversion, Pattern, called, inverted_pattern

__all__ = [
    "Cleaning",
    "FineTuning",
    "Inversion",
    "Method",
    "Pattern",
    "called",
    "cleaned",
    "inverted_pattern",
    "write_guide",
]
