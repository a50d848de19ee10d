"""Where a command is: `step 3 of 5`, and the time left for all steps, corrected as the first ones end."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from clipguard.outputs.text import duration

Clock = Callable[[], int | float]
"""Seconds since any moment."""

QUICKEST: Final = 0.05
"""Share of the estimate below which a step was not computed, but found."""

SHARE_TO_TRUST: Final = 0.2
"""Of a step that must be done before its own pace says more than the estimate."""


LITTLE: Final = 10.0
"""Seconds that count as run as estimated before any step has: a short one says little of the pace."""


class Step(NamedTuple):
    """A step of a command as people count them: the stages that belong to it, and its seconds."""

    stages: tuple[str, ...]
    seconds: int | float


class Timetable:
    """The steps of a command, and how far it is.

    Args:
        steps: in their order, with the seconds that were estimated.
        titles: of stages in progress, by the stage's name.
        clock: seconds since any moment.
        timed: whether the seconds rest on measurements; without, none are shown.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        titles: Mapping[str, str],
        clock: Clock = time.monotonic,
        timed: bool = True,
    ) -> None:
        self._steps, self._clock = tuple(steps), clock
        self._number = {
            titles[stage]: number
            for number, step in enumerate(steps)
            for stage in step.stages
            if stage in titles
        }
        self._now, self._spent, self._timed = 0, [0.0] * len(steps), timed
        self._since = self._last = clock()

    def place(self, title: str) -> str:
        """Return where the command is, in words; empty for what is no step."""
        number = self._number.get(title)
        return "" if number is None else f"step {number + 1} of {len(self._steps)}"

    def left(self, title: str, done: int, total: int) -> str:
        """Return the time left for all steps in words; empty where nothing is known.

        Args:
            title: of the stage that runs.
            done: parts of it that are done.
            total: its parts.
        """
        number = self._number.get(title)
        if number is None or not total:
            return ""
        self._enter(number)
        if not self._timed:
            return ""
        spent, share = self._last - self._since, done / total
        planned = self._steps[number].seconds * self._pace(number)
        here = spent * (1 - share) / share if share >= SHARE_TO_TRUST else max(planned - spent, 0.0)
        ahead = sum(step.seconds for step in self._steps[number + 1 :])
        seconds = here + ahead * self._pace(number, spent, share)
        return f"{rough_time(seconds)} left in all" if seconds >= 1 else ""

    def _enter(self, number: int) -> None:
        before, self._last = self._last, self._clock()
        if number != self._now:
            # The first that is heard of a step may be its end: it began when the one before it ended.
            self._spent[self._now] += before - self._since
            self._now, self._since = number, before

    def _pace(self, number: int, spent: int | float = 0.0, share: int | float = 0.0) -> int | float:
        """Return how many times as long as estimated the steps have taken, those that have run."""
        planned = taken = 0.0
        for place, step in enumerate(self._steps[:number]):
            if self._spent[place] > 0:
                planned, taken = planned + step.seconds, taken + self._spent[place]
        if share >= SHARE_TO_TRUST:
            planned, taken = planned + share * self._steps[number].seconds, taken + spent
        # What was there already takes no time, and says nothing of what follows.
        return min(5.0, (taken + LITTLE) / (planned + LITTLE)) if taken > QUICKEST * planned else 1.0


def rough_range(least: int | float, most: int | float) -> str:
    """Return two times as they can be promised, as one where they look the same."""
    first, last = rough_time(least), rough_time(most)
    if first == last:
        return first
    unit = last.rsplit(" ", 1)[1]
    return f"{first.removesuffix(f' {unit}')} to {last.removeprefix('about ')}"


def rough_time(seconds: int | float) -> str:
    """Return a time as it can be promised: whole minutes, or tens of seconds below two minutes."""
    if seconds < 110:
        return f"about {max(10, 10 * round(seconds / 10))} s"
    return (
        f"about {round(seconds / 60)} min"
        if seconds < 5400
        else f"about {duration(60 * round(seconds / 60))}"
    )
