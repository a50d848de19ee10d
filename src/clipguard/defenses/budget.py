"""Time as a budget: a schedule is cut to some times what clipguard takes on the same case."""

import time
from collections.abc import Callable
from typing import Final

from clipguard.defenses.clipguard import fitted
from clipguard.defenses.protocol import Case
from clipguard.pipeline.config import DefenseConfig

TIMED: Final = 5
"""Steps whose time is taken, after one that is not."""


def seconds_of_clipguard(case: Case, config: DefenseConfig) -> float:
    """Return what scan, the guide's pass and repair take on this case, once they have been computed here."""
    stages = fitted(case, config).stages_
    return case.guide_pass_seconds + sum(stage.seconds for stage in stages.values())


def step_seconds(step: Callable[[], object]) -> float:
    """Return the seconds of one step of a training, as a mean over some."""
    step()
    began = time.monotonic()
    for _ in range(TIMED):
        step()
    return (time.monotonic() - began) / TIMED


def affordable(published_seconds: float, budget: float | None) -> float:
    """Return the share of a published schedule that a budget in seconds pays for: 1 without a budget."""
    if budget is None:
        return 1.0
    return min(1.0, budget / max(published_seconds, 1e-9))


def cut(steps: int, share: float) -> int:
    """Return a number of steps or passes cut to a share, at least one."""
    return max(1, round(steps * share))
