"""The one exception that a user is meant to see."""


class ClipguardError(Exception):
    """A fault in what the user gave, in one line: what happened, to which input, what to do.

    The command line prints the text without a traceback and exits with code 2.
    """
