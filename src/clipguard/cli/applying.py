"""`apply`: a copy of the source without what a run has flagged."""

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from clipguard.cli.options import HostileInput, Json, NewFolder
from clipguard.cli.outcome import Outcome
from clipguard.errors import one_line
from clipguard.safety.limits import Limits

if TYPE_CHECKING:
    from rich.console import Console


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyOptions:
    """What `apply` takes.

    Attributes:
        set_aside: Drop what is set aside, too.
        q_value: Drop, too, what has at most this q-value, such as 0.1.
        reviews: Review marks saved in the page; default: reviews.json of the run folder, if there.
    """

    out: NewFolder
    set_aside: Annotated[bool, Parameter(negative="")] = False
    q_value: float | None = None
    reviews: Path | None = None
    limits: HostileInput = field(default_factory=Limits)
    json: Json = False


def run_apply(run: Path, source: Path, options: ApplyOptions) -> Outcome:
    """Return what was copied and what was left out.

    Raises:
        ClipguardError: not the source that was scanned, a run that is not finished, or a folder that is full.
    """
    from clipguard.outputs.clean_copy import write_clean_copy
    from clipguard.outputs.kept import kept_samples
    from clipguard.outputs.progress import warn, working
    from clipguard.runs.reviews import read_reviews, reviews_file

    file = options.reviews or reviews_file(run)
    marks = read_reviews(file).reviews if file else []
    choice = kept_samples(run, set_aside=options.set_aside, q_value=options.q_value, reviews=marks)
    with working() as progress:
        copy = write_clean_copy(run, source, options.out, choice, progress, options.limits)
    if copy.emptied:
        warn([f"{len(copy.emptied)} classes have no sample left: {', '.join(copy.emptied[:5])}"])
    counts = Counter(mark.decision for mark in marks)
    about_marks = (
        None
        if file is None
        else {
            "file": str(file),
            "keep": counts["keep"],
            "drop": counts["drop"],
            "kept_though_flagged": choice.rescued,
            "of_no_sample": choice.strangers,
        }
    )
    value = {
        "run": str(run),
        "source": str(source),
        "out": str(options.out),
        "kept": copy.samples,
        "dropped": choice.dropped,
        "not_scanned": copy.not_scanned,
        "emptied_classes": list(copy.emptied),
        "reviews": about_marks,
    }
    return Outcome(value=value, show=partial(_show, value), as_json=options.json)


def _show(value: dict[str, Any], console: "Console") -> None:
    dropped = ", ".join(f"{count:,} {cause}" for cause, count in value["dropped"].items()) or "none"
    lines = [f"{value['kept']:,} samples copied to {value['out']}; left out: {dropped}"]
    if value["not_scanned"]:
        lines.append(f"{value['not_scanned']:,} were not scanned or could not be read: left out, too")
    if value["reviews"]:
        marks = value["reviews"]
        lines.append(
            f"review marks of {marks['file']}: {marks['keep']} keep, {marks['drop']} drop; "
            f"{marks['of_no_sample']} of no sample here"
        )
    for line in lines:
        console.print(one_line(line), soft_wrap=True, markup=False, emoji=False)
