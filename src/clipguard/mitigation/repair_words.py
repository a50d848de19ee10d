"""What the gauge's readings of a repair mean to its user, in sentences."""

from collections.abc import Iterator
from typing import Final

from clipguard.mitigation.gauge import TAKES_EFFECT, GaugeReading, cost

DEAR: Final = 0.005
"""Lost share of trusted samples above which a repair says what it cost."""

LEFT: Final = 0.1
"""Share of trusted samples that may still follow the reconstructed trigger before a repair says so."""


def repair_words(before: GaugeReading, after: GaugeReading, rate: float, *, learned: bool) -> Iterator[str]:
    """Yield what a repair cost, where that is more than little and than chance, and what it left undone.

    Args:
        before: of the victim.
        after: of the repaired model.
        rate: learning rate of the repair.
        learned: whether the victim has learned the gauge's samples, which it then partly knows by heart.
    """
    lost, error = cost(before, after)
    if lost > max(DEAR, 2 * error):
        where = "that it has learned and the repair did not repeat" if learned else "that neither has learned"
        rates = f"{before.accuracy:.1%} are right before and {after.accuracy:.1%} after"
        words = f"{100 * lost:.1f} points: of {len(before.right)} trusted samples {where}, {rates}"
        hint = f"a rate below {rate:g} changes the model less, retraining trains another one"
        if learned:
            yield f"the repair may cost up to {words}; a test set tells what new images lose; {hint}"
        else:
            yield f"the repair costs {words}; {hint}"
    if before.followed is None or after.followed is None or before.followed < TAKES_EFFECT:
        return
    if after.followed > LEFT:
        yield (
            f"the repair is not complete: {after.followed:.1%} of the trusted samples still follow the "
            f"reconstructed trigger ({before.followed:.1%} before); retrain without the flagged samples"
        )
