"""The page itself: one template, everything from the data escaped, nothing loaded from anywhere."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from clipguard.outputs.report.plot import curve_svg, entropy_map_svg
from clipguard.outputs.report.summary import summarize
from clipguard.runs import RunFolder, write_text

_LONGEST: Final = 200
_PNG: Final = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")

_VERDICTS: Final = {
    "clean": ("good", "Clean", "no sign of a backdoor was found"),
    "suspicious": ("bad", "Suspicious", "this data set probably carries a backdoor"),
    "undecided": ("open", "Undecided", "the evidence does not settle it either way"),
}

_RATES: Final = (
    ("accuracy", "Accuracy", "ordinary images given their right class", +1),
    ("attack_success", "Attack success", "images with the trigger sent to the attacker’s class", -1),
    ("robust_accuracy", "Recovery", "images with the trigger given their true class", +1),
    ("target_recall", "Recall of the target class", "ordinary images of the attacker’s class recognised", +1),
)


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
    run = _filled(summary["run"])
    kind = str(run["verdict"]["verdict"])
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            run=run,
            counts=summary["counts"],
            classes=summary["classes"],
            top=summary["top"],
            shared=summary["shared"],
            created=summary["manifest"]["created"],
            verdict=_VERDICTS.get(kind, ("open", kind, "")),
            rates=_rates(run["before"], run["after"]),
            map=Markup(entropy_map_svg(summary["map"])),
            curve=Markup(curve_svg(run["curve"])) if run["curve"] else None,
            seconds=_shares(run["seconds"] or {}),
            manifest=_lines(summary["manifest"]),
        )
    )


def _filled(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run's summary with None for all that it may leave out: `scan` has no cure, for one."""
    parts = {
        "": "guide before after seconds curve warnings version seed",
        "data": "location classes unreadable empty_classes",
        "verdict": "verdict reasons",
        "guide": "name agreement",
        "before": "measured_on",
        "after": "measured_on",
    }
    full = dict.fromkeys(parts.pop("").split()) | dict(run)
    return full | {part: dict.fromkeys(names.split()) | (full[part] or {}) for part, names in parts.items()}


def visible(value: Any) -> Any:
    """Return a text as it may be shown: short, with every control, direction and line-break mark spelt out.

    The template's `finalize`: it meets every value on its way into the page, before it is escaped, so no
    place in the template can forget it.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    if len(value) > _LONGEST:
        value = f"{value[: _LONGEST // 2]} … {value[-_LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"percent": percent, "duration": duration, "count": _count, "picture": _picture}
    return made


def percent(rate: int | float | None) -> str:
    """Return a fraction as per cent with one decimal, or a dash for what was not measured."""
    return "–" if rate is None else f"{100 * rate:.1f} %"


def duration(seconds: int | float) -> str:
    """Return a time that a person reads at a glance."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _count(number: int) -> str:
    return f"{number:,}"


def _picture(uri: str) -> Markup:
    # The one text that skips `visible`, so it must prove that it is a picture.
    return Markup(uri) if _PNG.fullmatch(uri) else Markup("data:,")


def _rates(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the before/after table: what was measured at least once."""
    rows = []
    for key, name, meaning, better in _RATES:
        old, new = before.get(key), after.get(key)
        if old is None and new is None:
            continue
        points = None if old is None or new is None else 100 * (new - old)
        # Half a point is noise on any test set of usual size: it gets no colour.
        tone = "" if points is None or abs(points) < 0.5 else "good" if points * better > 0 else "bad"
        change = "–" if points is None else f"{points:+.1f}".replace("-", "−")
        rows.append(
            {"name": name, "meaning": meaning, "before": old, "after": new, "change": change, "tone": tone}
        )
    return rows


def _shares(seconds: Mapping[str, Any]) -> list[dict[str, Any]]:
    longest = max([*seconds.values(), 1e-9])
    return [{"name": name, "seconds": s, "share": s / longest} for name, s in seconds.items()]


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
