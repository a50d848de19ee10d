"""The one exception that a user is meant to see."""


def one_line(text: str) -> str:
    """Return `text` with control, direction and line-break marks spelt out: names come from strangers."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class ClipguardError(Exception):
    """A fault in what the user gave, in one line: what happened, to which input, what to do.

    The command line prints the text without a traceback and exits with code 2.
    """

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text))
