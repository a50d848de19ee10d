"""`report`: the page once more."""

from pathlib import Path

from clipguard.cli.outcome import Outcome


def run_report(run: Path, *, static: bool, without_pictures: bool, as_json: bool) -> Outcome:
    """Return where the page lies.

    Raises:
        ClipguardError: a run that is not finished, or whose pictures `clean` has dropped.
    """
    from clipguard.errors import ClipguardError
    from clipguard.outputs.progress import warn
    from clipguard.outputs.report import write_report
    from clipguard.runs.cleaning import cleaning_of

    cleaning = cleaning_of(run)
    page = run / "report.html"
    if cleaning is not None and page.exists() and not without_pictures:
        raise ClipguardError(
            f"{cleaning.words(run)}, pictures too: a new page has none, and would replace {page}; run the "
            "scan again, or give --without-pictures"
        )
    path = str(write_report(run, static=static))
    if cleaning is not None:
        warn([f"{cleaning.words(run)}: the page has no picture and no reconstructed trigger"])
    return Outcome(
        value={"report": path, "cleaned": None if cleaning is None else cleaning.at},
        show=lambda console: console.print(path, soft_wrap=True, markup=False),
        as_json=as_json,
    )
