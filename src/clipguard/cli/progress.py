"""Progress on stderr: bars with the time left on a terminal, one plain line a minute elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from clipguard.cli.text import one_line

Report = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""

LINE_EVERY: Final = 60.0
WORTH_A_LINE: Final = 1.0
"""Seconds that a stage takes at least for its end to be told."""

_STAGES: Final = {
    "fingerprint": "hash the data",
    "read": "read and ask the guide",
    "suspect": "train the suspicious model",
    "detect": "look for a trigger",
    "victim": "train the model",
    "cure": "unlearn",
    "retrain": "train anew without the flagged",
    "images": "read the images",
    "test images": "read the test images",
}


def duration(seconds: int | float) -> str:
    """Return a time in the two units that matter."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


@dataclass(slots=True)
class Lines:
    """Progress as lines: at most one a minute while a stage runs, and one when it ends, unless in no time.

    Attributes:
        write: takes each line.
        clock: seconds since any moment.
    """

    write: Callable[[str], object]
    clock: Callable[[], int | float] = time.monotonic
    _stage: str = field(default="", init=False)
    _began: int | float = field(default=0, init=False)
    _told: int | float = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._began = self._told = self.clock()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Print a line if one is due."""
        now = self.clock()
        if stage != self._stage:
            # A stage is first heard of when a part of it is done: it began when the one before it ended.
            self._stage, self._began = stage, now if done == 0 else self._told
        spent = now - self._began
        if done < total and now - self._told < LINE_EVERY:
            return
        self._told = now
        if done >= total and spent < WORTH_A_LINE:
            return
        left = f", {duration(spent / done * (total - done))} left" if 0 < done < total else ""
        took = f" in {duration(spent)}" if done >= total else ""
        self.write(f"clipguard: {_STAGES.get(stage, stage)}: {done:,} of {total:,}{took}{left}\n")


class _TimeLeft(ProgressColumn):
    """Time left by the mean pace since the stage began: epochs are too few for a moving average."""

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text(f"in {duration(task.finished_time or 0)}", style="dim")
        if not task.completed or task.total is None:
            return Text("")
        paced = task.fields["paced"] / task.completed * (task.total - task.completed)
        since = (task.elapsed or 0) - task.fields["paced"]
        return Text(f"{duration(paced - since)} left", style="cyan")


@dataclass(slots=True)
class Bars:
    """Progress as one bar a stage.

    Attributes:
        bars: the display, started and stopped by whoever made it.
    """

    bars: Progress
    _tasks: dict[str, TaskID] = field(default_factory=dict, init=False)
    _ended: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._ended = self.bars.get_time()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Move the stage's bar."""
        if stage not in self._tasks:
            self._tasks[stage] = self.bars.add_task(_STAGES.get(stage, stage), total=total, paced=0.0)
            self._task(stage).start_time = self._ended if done else self.bars.get_time()
        paced = self._task(stage).elapsed or 0.0
        self.bars.update(self._tasks[stage], completed=done, total=total, paced=paced)
        self._ended = self.bars.get_time()

    def _task(self, stage: str) -> Task:
        return next(task for task in self.bars.tasks if task.id == self._tasks[stage])


@contextlib.contextmanager
def working() -> Iterator[Report]:
    """Give what to report progress to; what anything prints inside the block goes to stderr.

    A user's model factory may print, and stdout belongs to the result.
    """
    with contextlib.redirect_stdout(sys.stderr):
        console = Console(stderr=True)
        if not console.is_terminal:
            yield Lines(sys.stderr.write)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _TimeLeft())
        with Progress(*columns, console=console) as bars:
            yield Bars(bars)


def warn(texts: list[str]) -> None:
    """Print warnings on stderr, a line each."""
    for text in texts:
        sys.stderr.write(f"clipguard: warning: {one_line(text)}\n")
