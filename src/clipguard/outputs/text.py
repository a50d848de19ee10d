"""Words and numbers as people read them: one way for the command line and for the page."""

from typing import Final, NamedTuple


class Answer(NamedTuple):
    """How an answer of the verdict reads to people and to scripts.

    Attributes:
        title: in one word.
        sentence: what it means.
        advice: what to do.
        tone: good, bad or open; what colours follow.
        exit_code: of the commands that end with a verdict.
    """

    title: str
    sentence: str
    advice: str
    tone: str
    exit_code: int


VERDICTS: Final = {
    "clean": Answer(
        "Clean",
        "no sign of a backdoor was found, and known triggers in a copy of this data were",
        "The data can be used. What could have been missed stands below.",
        "good",
        0,
    ),
    "suspicious": Answer(
        "Suspicious",
        "this data set probably carries a backdoor",
        "Look at the flagged samples of the classes below. Train nothing on them: leave them out, or repair "
        "a model of this data by clipguard defend.",
        "bad",
        1,
    ),
    "undecided": Answer(
        "Undecided",
        "neither a backdoor nor its absence can be shown",
        "Keep treating the data as untrusted. The reasons say what is missing; look at the most suspicious "
        "samples.",
        "open",
        3,
    ),
}
"""The answers that a verdict can have."""


def percent(rate: int | float | None) -> str:
    """Return a fraction as per cent with one decimal, or a dash for what was not measured."""
    return "–" if rate is None else f"{100 * rate:.1f} %"


def duration(seconds: int | float) -> str:
    """Return a time in the two units that matter."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
