"""`completion`: what completes commands and options in a shell, printed or installed."""

from typing import Literal

from cyclopts import App
from cyclopts.completion import detect

from clipguard.cli.outcome import Outcome
from clipguard.errors import ClipguardError

Shell = Literal["bash", "zsh", "fish", "powershell"]


def run_completion(app: App, shell: Shell | None, install: bool, as_json: bool) -> Outcome:
    """Return the completion of a shell, or where it was installed.

    Raises:
        ClipguardError: the shell in use is none of those known.
    """
    try:
        kind = shell or detect.detect_shell()
    except detect.ShellDetectionError as error:
        raise ClipguardError(
            "the shell in use is not known: give --shell bash, zsh, fish or powershell"
        ) from error
    if install:
        path = str(app.install_completion(shell=kind))
        text = f"{path}\nOpen a new shell to use it."
        value = {"shell": kind, "installed": path}
    else:
        text = app.generate_completion(shell=kind)
        value = {"shell": kind, "script": text}
    return Outcome(
        value=value,
        show=lambda console: console.print(text, soft_wrap=True, markup=False, highlight=False),
        as_json=as_json,
    )
