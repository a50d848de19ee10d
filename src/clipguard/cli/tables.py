"""What a person sees at the end of a run: verdict, rates, the most suspicious samples, where all of it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipguard.errors import one_line
from clipguard.outputs.rates import rate_rows
from clipguard.outputs.samples import SAMPLES, read_texts
from clipguard.outputs.text import VERDICTS, duration, percent
from clipguard.runs import read_table
from clipguard.runs.summary import RunSummary

TOP: Final = 5
_COLOURS: Final = {"good": "green", "bad": "red", "open": "yellow", "": ""}


def show_run(summary: RunSummary, samples: Mapping[str, Any], console: Console) -> None:
    """Print the summary of a run and its `TOP` most suspicious samples."""
    verdict, data = VERDICTS[summary.verdict.answer], summary.data
    title = Text(verdict.title, style=f"bold {_COLOURS[verdict.tone]}")
    console.print()
    console.print(title.append(f"  {data.n:,} images, {len(data.classes)} classes", style="not bold dim"))
    for reason in summary.verdict.reasons:
        console.print(_plain(f"  · {reason}"))
    _show_rates(summary, console)
    _show_top(samples, console)
    console.print()
    if summary.model is not None:
        console.print(_plain(f"{'Given':8} {summary.model}"), soft_wrap=True)
    for name, file in summary.files.items():
        console.print(_plain(f"{name.capitalize():8} {file}"), soft_wrap=True)
    seconds = sum(stage.seconds for stage in summary.stages.values())
    where = f" on {summary.device}" if summary.device != "cpu" else ""
    console.print(_plain(f"{'Time':8} {duration(seconds)}{where}"), style="dim")


def most_suspicious(run: Path) -> dict[str, Any]:
    """Return the columns of samples.parquet that `show_run` needs, for the `TOP` samples alone."""
    numbers = read_table(run / SAMPLES, ("rank", "suspicion_score"))
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


def _show_top(samples: Mapping[str, Any], console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    table.add_column("most suspicious", overflow="fold")
    for name in ("label", "guide says"):
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    table.add_column("suspicion", justify="right")
    for row in np.argsort(samples["rank"], kind="stable")[:TOP]:
        texts = (samples[name][row] for name in ("id", "label_name", "guide_label_name"))
        table.add_row(*(_plain(str(text)) for text in texts), f"{samples['suspicion_score'][row]:.3f}")
    console.print(table)
