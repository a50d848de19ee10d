"""What a command hands back to be printed, and its exit code."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from clipguard.outputs.text import VERDICTS

if TYPE_CHECKING:
    from rich.console import Console

    from clipguard.runs.summary import Verdict

ERROR: Final = 2
SCHEMA_VERSION: Final = 1
"""Of every JSON object that a command prints: raised when a field changes its meaning or goes."""

EXIT_CODES: Final = {answer: words.exit_code for answer, words in VERDICTS.items()}
"""Of `scan` and `defend`, by the verdict's answer."""

FailOn = Literal["suspicious", "undecided", "never"]
FAILURES: Final[dict[FailOn, tuple[str, ...]]] = {
    "suspicious": ("suspicious",),
    "undecided": ("suspicious", "undecided"),
    "never": (),
}
"""The answers that count as failure, by the word of `--fail-on`."""


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


def exit_code(verdict: "Verdict", fail_on: FailOn = "undecided") -> int:
    """Return the exit code of a verdict: that of its answer if the answer counts as failure, else 0.

    A scan that could not read everything always fails, and is never clean.
    """
    if not verdict.complete:
        return EXIT_CODES["suspicious" if verdict.answer == "suspicious" else "undecided"]
    return EXIT_CODES[verdict.answer] if verdict.answer in FAILURES[fail_on] else 0
