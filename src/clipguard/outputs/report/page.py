"""The page itself: one template, nothing loaded from anywhere."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from clipguard.outputs.findings import LISTED, NOT_ASSESSABLE, finding_rows, power_words
from clipguard.outputs.rates import rate_rows
from clipguard.outputs.report.plot import entropy_map_svg
from clipguard.outputs.report.summary import summarize
from clipguard.outputs.report.templates import rendered
from clipguard.outputs.text import VERDICTS
from clipguard.runs import RunFolder, write_text
from clipguard.runs.summary import RunSummary


def write_report(run_dir: Path | str) -> Path:
    """Return the path of the page, now written into the run folder.

    Raises:
        ClipguardError: no run folder, a run that is not finished, or damaged files.
    """
    page = render(summarize(run_dir))
    with RunFolder.read(run_dir).publishing("report.html") as path:
        write_text(path, page)
    return path


def render(summary: Mapping[str, Any]) -> str:
    """Return the HTML page of what `summarize` returned."""
    run: RunSummary = summary["run"]
    seconds = [stage.seconds for stage in run.stages.values()]
    return rendered(
        "page.html.j2",
        **summary,
        picture=Markup(entropy_map_svg(summary["map"])),
        lines=_lines(summary["manifest"]),
        created=summary["manifest"]["created"],
        verdict=VERDICTS[run.verdict.answer],
        findings=finding_rows(run.verdict.findings),
        power=power_words(run.verdict.power),
        not_assessable=NOT_ASSESSABLE,
        listed=LISTED,
        readings=[*([run.guide.second] if run.guide.second else []), *run.guide.prompts[:LISTED]],
        rates=rate_rows(run.before, run.after),
        measured_on=next((rates.measured_on for rates in (run.after, run.before) if rates), ""),
        longest=max([1e-9, *seconds]),
        seconds=sum(seconds),
    )


def _lines(manifest: Any) -> list[str]:
    """Return the manifest as JSON lines, long lists cut."""
    lines = json.dumps(_cut(manifest), indent=2, ensure_ascii=False).split("\n")
    return lines if len(lines) <= 300 else [*lines[:300], f"… {len(lines) - 300} more lines in manifest.json"]


def _cut(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _cut(entry) for key, entry in value.items()}
    if isinstance(value, list) and len(value) > 20:
        return [_cut(entry) for entry in value[:20]] + [f"… {len(value) - 20} more"]
    return [_cut(entry) for entry in value] if isinstance(value, list) else value
