"""Progress on stderr: bars with the time left on a terminal, one plain line a minute elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Display

from clipguard.errors import one_line
from clipguard.outputs.steps import Clock, Timetable
from clipguard.outputs.text import duration
from clipguard.types import Progress

LINE_EVERY: Final = 60.0
WORTH_A_LINE: Final = 1.0
"""Seconds that a step takes at least for its end to get a line."""


class _Pace:
    """Since when the running step runs, by the calls so far."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._step = clock, ""
        self.now = self._began = clock()

    def spent(self, step: str, done: int) -> int | float:
        """Return the seconds that the step has taken."""
        before, self.now = self.now, self._clock()
        if step != self._step or not done:
            # A first call may come when a part is done already: the step began when the one before it ended.
            # One of which nothing is done begins now, also where the step before it had the same name.
            self._step, self._began = step, before if done else self.now
        return self.now - self._began


def _time(spent: int | float, done: int, total: int) -> str:
    """Return how long a step took, or will still take by its mean pace: a few epochs allow no better."""
    if done >= total:
        return f"in {duration(spent)}"
    return f"{duration(spent / done * (total - done))} left" if done else ""


class Lines:
    """Progress as lines: at most one a minute while a step runs, and one when it ends, unless in no time."""

    def __init__(
        self,
        write: Callable[[str], object],
        clock: Clock = time.monotonic,
        timetable: Timetable | None = None,
    ) -> None:
        self._write, self._pace, self._timetable = write, _Pace(clock), timetable
        self._last_line, self._ended = self._pace.now, ""

    def __call__(self, step: str, done: int, total: int) -> None:
        """Print a line if one is due."""
        if not total:
            self._write(f"clipguard: {step}\n")
            return
        spent, ended = self._pace.spent(step, done), done >= total
        place, left = _planned(self._timetable, step, done, total)
        # A step may do more than it has announced.
        again, self._ended = ended and self._ended == step and done, step if ended else ""
        if not ended and self._pace.now - self._last_line < LINE_EVERY:
            return
        self._last_line = self._pace.now
        if ended and (again or spent < WORTH_A_LINE):
            return
        took = f" {_time(spent, done, total)}" if ended else f", {_time(spent, done, total)}" if done else ""
        self._write(f"clipguard: {place}{step}: {done:,} of {total:,}{took}{left}\n")


def _planned(timetable: Timetable | None, step: str, done: int, total: int) -> tuple[str, str]:
    """Return where a step stands, to go before its name, and the time left in all, to follow."""
    place = timetable.place(step) if timetable else ""
    left = timetable.left(step, done, total) if timetable else ""
    return f"{place}: " if place else "", f"; {left}" if left else ""


def bars(display: Display, clock: Clock = time.monotonic, timetable: Timetable | None = None) -> Progress:
    """Return progress as one bar a step; whoever made the display starts and stops it."""
    pace, tasks = _Pace(clock), dict[str, TaskID]()

    def show(step: str, done: int, total: int) -> None:
        if not total:
            display.console.print(step, markup=False)
            return
        place, in_all = _planned(timetable, step, done, total)
        if step not in tasks:
            tasks[step] = display.add_task(place + step, total=total, left="")
        left = _time(pace.spent(step, done), done, total) + (in_all if done < total else "")
        display.update(tasks[step], completed=done, total=total, left=left)

    return show


@contextlib.contextmanager
def displayed(timetable: Timetable | None = None) -> Iterator[Progress]:
    """Give what takes progress, and show it on stderr.

    Args:
        timetable: the steps that are to be done.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(sys.stderr.write, timetable=timetable)
        return
    step, left = (TextColumn(f"{{task.{name}}}", markup=False) for name in ("description", "fields[left]"))
    with Display(step, BarColumn(), MofNCompleteColumn(), left, console=console) as display:
        yield bars(display, timetable=timetable)


@contextlib.contextmanager
def working(timetable: Timetable | None = None, *, quiet: bool = False) -> Iterator[Progress]:
    """Give what takes progress; what anything prints inside the block goes to stderr.

    A user's model factory may print, and stdout belongs to the result.

    Args:
        timetable: the steps that are to be done.
        quiet: show no progress.
    """
    with contextlib.redirect_stdout(sys.stderr):
        if quiet:
            yield lambda step, done, total: None
            return
        with displayed(timetable) as progress:
            yield progress


def warn(texts: list[str]) -> None:
    """Print warnings on stderr, a line each."""
    for text in texts:
        sys.stderr.write(f"clipguard: warning: {one_line(text)}\n")
