"""What a person sees at the end of a run: verdict, rates, the most suspicious samples, where all of it is."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipguard.errors import one_line
from clipguard.outputs.findings import LISTED, NOT_ASSESSABLE, finding_rows, power_words
from clipguard.outputs.formats import FlaggedSample
from clipguard.outputs.next_steps import next_steps
from clipguard.outputs.quality import QUALITY, quality_words, read_quality
from clipguard.outputs.rates import rate_rows
from clipguard.outputs.reviews import review_words
from clipguard.outputs.samples import read_texts
from clipguard.outputs.text import VERDICTS, duration, percent
from clipguard.runs import read_table
from clipguard.runs.samples_table import SAMPLES
from clipguard.runs.summary import BaselineSummary, RunSummary, Verdict

TOP: Final = 5
_COLOURS: Final = {"good": "green", "bad": "red", "open": "yellow", "": ""}


Detail = Literal["quiet", "normal", "verbose"]
"""How much is printed."""

NO_MANIFEST: Final[Mapping[str, Any]] = {}

_CLASSES: Final = 10
"""Classes with flagged samples that are listed."""

_PAIRS: Final = 3
"""Pairs of equal images under two labels that are listed."""


def show_run(
    summary: RunSummary,
    samples: Mapping[str, Any],
    console: Console,
    flagged: Sequence[FlaggedSample] = (),
    detail: Detail = "normal",
    manifest: Mapping[str, Any] = NO_MANIFEST,
) -> None:
    """Print the summary of a run, its `TOP` most suspicious samples, and what to do next."""
    data, answer = summary.data, VERDICTS[summary.verdict.answer].title
    share = percent(len(flagged) / data.n) if data.n else "–"
    count = f"{len(flagged):,} of {data.n:,} images ({share}) are flagged"
    if detail == "quiet":
        console.print(_plain(f"{answer}: {count}; {summary.files['report']}"), soft_wrap=True)
        return
    _show_verdict(summary.verdict, f"{data.n:,} images, {len(data.classes)} classes", console)
    console.print()
    console.print(_plain(f"{count[0].upper()}{count[1:]}."))
    for sentence in review_words(summary.reviews):
        console.print(_plain(sentence), soft_wrap=True)
    _show_baseline(summary.baseline, console)
    _show_classes(summary, flagged, console)
    _show_rates(summary, console)
    _show_top(samples, console)
    _show_quality(summary, console)
    console.print()
    _show_guides(summary, console)
    if summary.model is not None:
        console.print(_plain(f"{'Given':8} {summary.model}"), soft_wrap=True)
    for name, file in summary.files.items():
        place = _plain(f"{name.capitalize():8} {file}")
        place.stylize(f"link {Path(file).absolute().as_uri()}", 9)
        console.print(place, soft_wrap=True)
    _show_times(summary, console, detail)
    console.print()
    for number, line in enumerate(next_commands(summary, manifest, len(flagged))):
        console.print(_plain(f"{'' if number else 'Next':8} {line}"), soft_wrap=True)


def next_commands(summary: RunSummary, manifest: Mapping[str, Any], flagged: int) -> list[str]:
    """Return the commands that make sense after a run, ready to be typed."""
    if summary.command == "demo":
        return ["clipguard scan FOLDER -o runs/a    (your own data: one sub-folder a class)"]
    return [step.command for step in next_steps(summary, manifest, flagged) if step.command]


def _show_guides(summary: RunSummary, console: Console) -> None:
    guide, second = summary.guide, summary.guide.second
    if second is not None:
        words = f"{guide.name} agrees with {percent(guide.agreement)} of the labels, {second.name} with "
        words += f"{percent(second.agreement)}; they say the same of {percent(second.same)} of the images"
        console.print(_plain(f"{'Guides':8} {words}"), soft_wrap=True)


def _show_times(summary: RunSummary, console: Console, detail: Detail) -> None:
    seconds = sum(stage.seconds for stage in summary.stages.values())
    where = f" on {summary.device}" if summary.device != "cpu" else ""
    console.print(_plain(f"{'Time':8} {duration(seconds)}{where}"), style="dim")
    if detail == "verbose":
        for stage in summary.stages.values():
            console.print(_plain(f"{'':8} {stage.seconds:8.1f} s  {stage.title}"), style="dim")
        about = f"clipguard {summary.version}, seed {summary.seed}, {summary.threads} threads"
        console.print(_plain(f"{'':8} {about}, images at {summary.data.size[0]} x {summary.data.size[1]}"))


def _show_baseline(baseline: BaselineSummary | None, console: Console) -> None:
    if baseline is None:
        return
    words = VERDICTS[baseline.verdict.answer]
    text = (
        f"New since {baseline.run_dir}: {baseline.new:,} images, {baseline.flagged_new:,} of them flagged: "
        f"{words.title.lower()}"
    )
    console.print(_plain(text), style="bold", soft_wrap=True)
    for reason in baseline.verdict.reasons:
        console.print(_plain(f"  · {reason}"))


def _show_classes(summary: RunSummary, flagged: Sequence[FlaggedSample], console: Console) -> None:
    """Print how many samples of each class are flagged, the most first."""
    counts = Counter(sample.given_label for sample in flagged)
    if not counts:
        return
    sizes = {entry.class_name: entry.n for entry in summary.guide.competence}
    new = Counter(sample.given_label for sample in flagged if sample.new)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    table.add_column("class", overflow="fold")
    for name in ("flagged", "of the class", *(["new"] if summary.baseline else [])):
        table.add_column(name, justify="right")
    for name, count in counts.most_common(_CLASSES):
        share = percent(count / sizes[name]) if sizes.get(name) else "–"
        table.add_row(_plain(name), f"{count:,}", share, *([f"{new[name]:,}"] if summary.baseline else []))
    console.print(table)
    if len(counts) > _CLASSES:
        console.print(_plain(f"... and {len(counts) - _CLASSES:,} more classes"))


def _show_verdict(verdict: Verdict, about: str, console: Console) -> None:
    words = VERDICTS[verdict.answer]
    title = Text(words.title, style=f"bold {_COLOURS[words.tone]}")
    console.print()
    console.print(title.append(f": {words.sentence}", style="not bold").append(f"  {about}", style="dim"))
    console.print(Text(words.advice))
    for reason in verdict.reasons:
        console.print(_plain(f"  · {reason}"))
    _show_findings(verdict, console)
    console.print("What could have been missed:", style="dim")
    names = verdict.not_assessable
    unread = [f"{NOT_ASSESSABLE}: {_first_few(names)}"] if names else []
    for sentence in [*power_words(verdict.power), *unread, *verdict.limits[:LISTED]]:
        console.print(_plain(f"  · {sentence}"))


def _first_few(names: Sequence[str]) -> str:
    return ", ".join([*names[:LISTED], *(["..."] if len(names) > LISTED else [])])


def _show_findings(verdict: Verdict, console: Console) -> None:
    if not verdict.findings:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    table.add_column("class", overflow="fold")
    table.add_column("kind")
    for name in ("flagged", "poisoned, at least", "strength"):
        table.add_column(name, justify="right")
    rows = finding_rows(verdict.findings)
    for row in rows:
        table.add_row(_plain(row.class_name), row.kind, row.flagged, row.at_least, row.strength)
    console.print(table)
    for row in rows:
        cause = f"; {row.cause}" if row.cause else ""
        console.print(_plain(f"  {row.class_name}: {row.meaning}{cause}"))
    console.print()


def most_suspicious(run: Path) -> dict[str, Any]:
    """Return the columns of samples.parquet that `show_run` needs, for the `TOP` samples alone."""
    numbers = read_table(run / SAMPLES, ("rank", "poison_score"))
    rows = np.argsort(numbers["rank"], kind="stable")[:TOP]
    return {**{name: values[rows] for name, values in numbers.items()}, **read_texts(run, rows)}


def _plain(text: str) -> Text:
    """Return text that shows as it is: what comes from the data may hold markup or control a terminal."""
    return Text(one_line(text))


def _show_rates(summary: RunSummary, console: Console) -> None:
    if summary.before is None:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    table.add_column("")
    for name in ("before", "after", "points"):
        table.add_column(name, justify="right")
    for row in rate_rows(summary.before, summary.after):
        change = Text(row.change, style=_COLOURS[row.tone])
        table.add_row(row.metric.title, percent(row.before), percent(row.after), change)
    if table.row_count:
        console.print(table)
    console.print(
        Text.assemble(("Rates measured on ", "dim"), _plain(summary.before.measured_on)), soft_wrap=True
    )


def _show_quality(summary: RunSummary, console: Console) -> None:
    """Print the issues of data quality, apart from the verdict: they are no sign of an attack."""
    if summary.quality is None:
        return
    console.print("Data quality, apart from security:", style="dim")
    for words in [*quality_words(summary.quality), *_contradictions(Path(summary.run_dir))]:
        console.print(_plain(f"  · {words}"), soft_wrap=True)


def _contradictions(run: Path) -> list[str]:
    """Return the first equal images under two labels, with both names: one of the labels must be wrong."""
    if not (run / QUALITY).is_file():
        return []
    pairs = read_quality(run, _PAIRS).get("exact_duplicate_other_label", [])
    return [
        f"{pair.id} ({pair.given_label}) has the same bytes as {pair.other_id} ({pair.other_label})"
        for pair in pairs
    ]


def _show_top(samples: Mapping[str, Any], console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    table.add_column("most suspicious", overflow="fold")
    for name in ("label", "guide says"):
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    table.add_column("suspicion", justify="right")
    for row in np.argsort(samples["rank"], kind="stable")[:TOP]:
        texts = (samples[name][row] for name in ("id", "given_label", "predicted_label"))
        table.add_row(*(_plain(str(text)) for text in texts), f"{samples['poison_score'][row]:.3f}")
    console.print(table)
