"""The page itself: one template, nothing loaded from anywhere, one script whose hash the policy holds."""

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from clipguard.outputs.findings import (
    LISTED,
    NOT_ASSESSABLE,
    detection_words,
    finding_rows,
    power_words,
    strength_words,
)
from clipguard.outputs.rates import rate_rows
from clipguard.outputs.report.embedded import embedded
from clipguard.outputs.report.plot import entropy_map_svg, map_style
from clipguard.outputs.report.summary import summarize
from clipguard.outputs.report.templates import FOLDER, rendered
from clipguard.outputs.text import VERDICTS
from clipguard.runs import RunFolder, write_text
from clipguard.runs.reviews import REVIEWS, reviews_file
from clipguard.runs.summary import RunSummary

SCRIPTS: Final = ("start.js", "triggers.js", "reviews.js", "dialog.js", "map.js", "gallery.js", "table.js")
"""Parts of the one script, in order."""

PRINTED: Final = 96
"""How many pictures of a gallery are printed, as the style sheet says."""


def write_report(run_dir: Path | str, *, static: bool = False) -> Path:
    """Return the path of the page, now written into the run folder; a static one has no script at all.

    Raises:
        ClipguardError: no run folder, a run that is not finished, or damaged files.
    """
    page, folder = render(summarize(run_dir), static=static), RunFolder.read(run_dir)
    if reviews_file(folder.path) is not None:
        with folder.publishing(REVIEWS):
            pass  # marks that a person has put there: from now on, the seal holds those that the page shows
    with folder.publishing("report.html") as path:
        write_text(path, page)
    return path


def render(summary: Mapping[str, Any], *, static: bool = False) -> str:
    """Return the HTML page of what `summarize` returned."""
    run: RunSummary = summary["run"]
    seconds = [stage.seconds for stage in run.stages.values()]
    style, script = _asset("page.css"), "" if static else page_script()
    return rendered(
        "page.html.j2",
        **summary,
        static=static,
        printed=PRINTED,
        policy=Markup(_policy(script, style, map_style())),
        style=Markup(style),
        script=Markup(script),
        embedded=Markup("" if static else embedded(summary)),
        picture=Markup(entropy_map_svg(summary["map"])),
        lines=_lines(summary["manifest"]),
        created=summary["manifest"]["created"],
        verdict=VERDICTS[run.verdict.answer],
        trigger_of={trigger["number"]: trigger for trigger in summary["triggers"]},
        findings=finding_rows(run.verdict.findings),
        strengths=[strength_words(finding) for finding in run.verdict.findings[:LISTED]],
        power=power_words(run.verdict.power),
        detection=detection_words(run.detection),
        not_assessable=NOT_ASSESSABLE,
        listed=LISTED,
        readings=[*([run.guide.second] if run.guide.second else []), *run.guide.prompts[:LISTED]],
        rates=rate_rows(run.before, run.after),
        measured_on=next((rates.measured_on for rates in (run.after, run.before) if rates), ""),
        longest=max([1e-9, *seconds]),
        seconds=sum(seconds),
    )


def page_script() -> str:
    """Return the script of the page, as one function of its own."""
    return '"use strict";(()=>{\n' + "".join(_asset(f"script/{name}") for name in SCRIPTS) + "})();\n"


def _policy(script: str, *styles: str) -> str:
    """Return a content-security policy that lets nothing in but these texts and pictures in the page."""
    parts = [
        "default-src 'none'",
        "img-src data:",
        "style-src " + " ".join(_hash(style) for style in styles),
        "base-uri 'none'",
        "form-action 'none'",
        # No text may be turned into markup, whoever asks.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
    return "; ".join([*parts, f"script-src {_hash(script)}"] if script else parts)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


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
