"""What a command hands back to be printed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a command in both of its forms.

    Attributes:
        value: JSON values for `--json`.
        show: prints the same for a person.
        as_json: which of the two is wanted.
        code: exit code.
    """

    value: dict[str, Any]
    show: "Callable[[Console], None]"
    as_json: bool
    code: int = 0
