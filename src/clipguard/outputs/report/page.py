"""The page itself: one template, everything from the data escaped, nothing loaded from anywhere."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from clipguard.errors import one_line
from clipguard.outputs.rates import rate_rows
from clipguard.outputs.report.plot import entropy_map_svg
from clipguard.outputs.report.summary import summarize
from clipguard.outputs.text import VERDICTS, duration, percent
from clipguard.runs import RunFolder, write_text
from clipguard.runs.summary import RunSummary

_LONGEST: Final = 200
_PNG: Final = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")


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
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            summary,
            created=summary["manifest"]["created"],
            verdict=VERDICTS[run.verdict.answer],
            rates=rate_rows(run.before, run.after),
            measured_on=next((rates.measured_on for rates in (run.after, run.before) if rates), ""),
            map=Markup(entropy_map_svg(summary["map"])),
            longest=max([1e-9, *(stage.seconds for stage in run.stages.values())]),
            seconds=sum(stage.seconds for stage in run.stages.values()),
            manifest=_lines(summary["manifest"]),
        )
    )


def visible(value: Any) -> Any:
    """Return a text as the page may hold it: short, with every control and direction mark spelt out.

    It is the template's `finalize`. Every value on its way into the page passes it before it is escaped, so
    that no place in the template can forget it.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    if len(value) > _LONGEST:
        value = f"{value[: _LONGEST // 2]} … {value[-_LONGEST // 2 :]}"
    return one_line(value)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "duration": duration, "count": _count, "picture": _picture}
    return environment


def _count(number: int) -> str:
    return f"{number:,}"


def _picture(uri: str) -> Markup:
    # The one text that skips `visible`, so it must prove that it is a picture.
    return Markup(uri) if _PNG.fullmatch(uri) else Markup("data:,")


def _lines(manifest: Any) -> list[str]:
    """Return the manifest as JSON lines, long lists cut."""
    text = json.dumps(_cut(manifest), indent=2, ensure_ascii=False)
    lines = text.split("\n")
    return lines if len(lines) <= 300 else [*lines[:300], f"… {len(lines) - 300} more lines in manifest.json"]


def _cut(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _cut(entry) for key, entry in value.items()}
    if isinstance(value, list) and len(value) > 20:
        return [_cut(entry) for entry in value[:20]] + [f"… {len(value) - 20} more"]
    return [_cut(entry) for entry in value] if isinstance(value, list) else value
