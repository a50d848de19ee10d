"""What a command hands back to be printed, and its exit code."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from clipguard.outputs.text import VERDICTS

if TYPE_CHECKING:
    from rich.console import Console

    from clipguard.runs.summary import RunSummary

ERROR: Final = 2
EXIT_CODES: Final = {answer: words.exit_code for answer, words in VERDICTS.items()}
"""Of `scan` and `defend`, by the verdict's answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a command in both of its forms.

    Attributes:
        value: JSON values for `--json`.
        show: prints the same for a person.
        as_json: which of the two is printed.
        code: exit code.
    """

    value: dict[str, Any]
    show: "Callable[[Console], None]"
    as_json: bool
    code: int = 0


def exit_code(summary: "RunSummary") -> int:
    """Return the exit code of a run: its verdict's, but nothing is clean unless all of it was read."""
    if summary.verdict.answer == "clean" and summary.data.unreadable:
        return EXIT_CODES["undecided"]
    return EXIT_CODES[summary.verdict.answer]
