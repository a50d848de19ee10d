"""Progress on stderr: bars with the time left on a terminal, one plain line a minute elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Display
from rich.text import Text

from clipguard.errors import one_line
from clipguard.outputs.text import duration
from clipguard.types import Progress

LINE_EVERY: Final = 60.0
WORTH_A_LINE: Final = 1.0
"""Seconds that a step takes at least for its end to get a line."""


@dataclass(slots=True)
class Lines:
    """Progress as lines: at most one a minute while a step runs, and one when it ends, unless in no time.

    Attributes:
        write: takes each line.
        clock: seconds since any moment.
    """

    write: Callable[[str], object]
    clock: Callable[[], int | float] = time.monotonic
    _step: str = field(default="", init=False)
    _began: int | float = field(default=0, init=False)
    _due_since: int | float = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._began = self._due_since = self.clock()

    def __call__(self, step: str, done: int, total: int) -> None:
        """Print a line if one is due."""
        now = self.clock()
        if step != self._step:
            # A first call may come when a part is done already: the step began when the one before it ended.
            self._step, self._began = step, now if done == 0 else self._due_since
        spent = now - self._began
        if done < total and now - self._due_since < LINE_EVERY:
            return
        self._due_since = now
        if done >= total and spent < WORTH_A_LINE:
            return
        left = f", {duration(spent / done * (total - done))} left" if 0 < done < total else ""
        took = f" in {duration(spent)}" if done >= total else ""
        self.write(f"clipguard: {step}: {done:,} of {total:,}{took}{left}\n")


class _TimeLeft(ProgressColumn):
    """Time left by the mean pace since the step began: epochs are too few for a moving average."""

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text(f"in {duration(task.finished_time or 0)}", style="dim")
        if not task.completed or task.total is None:
            return Text("")
        left = task.fields["spent"] / task.completed * (task.total - task.completed)
        since = (task.elapsed or 0) - task.fields["spent"]
        return Text(f"{duration(left - since)} left", style="cyan")


@dataclass(slots=True)
class Bars:
    """Progress as one bar a step.

    Attributes:
        bars: the display, started and stopped by whoever made it.
    """

    bars: Display
    _tasks: dict[str, TaskID] = field(default_factory=dict, init=False)
    _ended: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._ended = self.bars.get_time()

    def __call__(self, step: str, done: int, total: int) -> None:
        """Move the step's bar."""
        if step not in self._tasks:
            self._tasks[step] = self.bars.add_task(step, total=total, spent=0.0)
            self._task(step).start_time = self._ended if done else self.bars.get_time()
        spent = self._task(step).elapsed or 0.0
        self.bars.update(self._tasks[step], completed=done, total=total, spent=spent)
        self._ended = self.bars.get_time()

    def _task(self, step: str) -> Task:
        return next(task for task in self.bars.tasks if task.id == self._tasks[step])


@contextlib.contextmanager
def working() -> Iterator[Progress]:
    """Give what takes progress; what anything prints inside the block goes to stderr.

    A user's model factory may print, and stdout belongs to the result.
    """
    with contextlib.redirect_stdout(sys.stderr):
        console = Console(stderr=True)
        if not console.is_terminal:
            yield Lines(sys.stderr.write)
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            _TimeLeft(),
        )
        with Display(*columns, console=console) as bars:
            yield Bars(bars)


def warn(texts: list[str]) -> None:
    """Print warnings on stderr, a line each."""
    for text in texts:
        sys.stderr.write(f"clipguard: warning: {one_line(text)}\n")
