"""What a person sees at the end of a run: verdict, rates, the most suspicious samples, where all of it is."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipguard.cli.progress import duration
from clipguard.cli.text import one_line

TOP: Final = 5
_COLOURS: Final = {"clean": "green", "suspicious": "red", "undecided": "yellow"}
_RATES: Final = {
    "accuracy": "accuracy",
    "target_recall": "recall of the target class",
    "attack_success": "attack success",
    "robust_accuracy": "triggered images set right",
}
_FILES: Final = {"report": "Report", "samples": "Samples", "planted": "Planted", "model": "Model"}


def show_run(summary: Mapping[str, Any], samples: Mapping[str, Any], console: Console) -> None:
    """Print the summary of a run and its `TOP` most suspicious samples."""
    verdict, data = summary["verdict"], summary["data"]
    title = Text(str(verdict["verdict"]).capitalize(), style=f"bold {_COLOURS[verdict['verdict']]}")
    console.print()
    console.print(
        title.append(f"  {data['n']:,} images, {len(data['classes'])} classes", style="not bold dim")
    )
    for reason in verdict["reasons"]:
        console.print(_plain(f"  · {reason}"))
    if "before" in summary:
        _show_rates(summary["before"], summary["after"], console)
    _show_top(samples, console)
    console.print()
    for key, name in _FILES.items():
        if key in summary:
            console.print(_plain(f"{name:8} {summary[key]}"), soft_wrap=True)
    console.print(Text(f"{'Time':8} {duration(sum(summary['seconds'].values()))}", style="dim"))


def _plain(text: str) -> Text:
    """Return text that shows as it is: what comes from the data may hold markup or control a terminal."""
    return Text(one_line(text))


def _table(*columns: str) -> Table:
    """Return an empty table whose first column is text and whose others are numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    return table


def _show_rates(before: Mapping[str, Any], after: Mapping[str, Any], console: Console) -> None:
    table = _table("", "before", "after", "change")
    for key, name in _RATES.items():
        if key in before and key in after:
            change = f"{after[key] - before[key]:+.3f}"
            table.add_row(name, f"{before[key]:.3f}", f"{after[key]:.3f}", change)
    if table.row_count:
        console.print(table)
    console.print(
        Text.assemble(("Rates measured on ", "dim"), _plain(str(before["measured_on"]))), soft_wrap=True
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
