"""How far to prune: as far as the accuracy on held-out clean samples allows."""

from collections.abc import Callable, Iterable
from typing import TypeVar

from clipguard.compute.inference import classifier_logits
from clipguard.models.spec import Normalized
from clipguard.types import ImageSet

Strength = TypeVar("Strength")


def held_out_accuracy(model: Normalized, held_out: ImageSet) -> float:
    """Return the share of the held-out samples that a model gives their labels."""
    return float((classifier_logits(model, held_out.images).argmax(1) == held_out.labels).mean())


def strongest_kept(
    strengths: Iterable[Strength], accuracy: Callable[[Strength], float], floor: float
) -> Strength | None:
    """Return the last strength before accuracy first falls below the floor; None where the first one does.

    Args:
        strengths: of a pruning, ascending.
        accuracy: what a strength leaves of the accuracy.
        floor: the least accuracy that is accepted.
    """
    kept = None
    for strength in strengths:
        if accuracy(strength) < floor:
            break
        kept = strength
    return kept
