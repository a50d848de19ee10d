"""Time as a budget: a schedule is cut to some times what clipguard takes on the same case."""

import time
from collections.abc import Callable, Mapping
from typing import Final

from clipguard.defenses.clipguard import fitted, scanned, stage_seconds
from clipguard.defenses.protocol import Case
from clipguard.pipeline.config import DefenseConfig

TIMED: Final = 5
"""Steps whose time is taken, after one that is not."""


def seconds_of_clipguard(case: Case, config: DefenseConfig) -> float:
    """Return what scan, the guide's pass and repair take on this case, once they have been computed here."""
    return case.guide_pass_seconds + sum(stage_seconds(fitted(case, config)).values())


def seconds_of_scan(case: Case, config: DefenseConfig) -> dict[str, float]:
    """Return what the stages of a scan take on this case, once they have been computed here."""
    return stage_seconds(scanned(case, config))


def seconds_left(
    case: Case, config: DefenseConfig, budget: float | None, scan: Mapping[str, float]
) -> float | None:
    """Return the seconds that a budget leaves a defence; None without a budget.

    A scan that a defence's clean samples come from is part of the defence: it is paid for first, with the
    guide's pass.

    Args:
        case: whose clipguard is the measure.
        config: clipguard's settings.
        budget: times clipguard's own seconds.
        scan: seconds of the scan by stage; empty where the defence has none.
    """
    if budget is None:
        return None
    spent = sum(scan.values()) + (case.guide_pass_seconds if scan else 0.0)
    return max(0.0, budget * seconds_of_clipguard(case, config) - spent)


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
