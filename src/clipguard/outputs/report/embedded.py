"""What the page's script knows of a run."""

import json
from collections.abc import Mapping
from typing import Any, Final

from clipguard.outputs.report.shown_samples import NUMBERS

_COLUMNS: Final = ("id", "path", "sha256", "given", "predicted", "status", "reason", "cause", *NUMBERS)
_REPEATED: Final = ("given", "predicted", "status", "reason")


def embedded(summary: Mapping[str, Any]) -> str:
    """Return what the script knows, as JSON in ASCII that no text of the data can leave.

    `samples` has a list a name, in the order of the pictures. A path that is the id is None, and texts that
    repeat are numbers in `texts`. `cells` counts all samples of the run by square of the map.
    """
    samples = {name: [_rounded(one[name]) for one in summary["samples"]] for name in _COLUMNS}
    samples["path"] = [
        None if path in ("", name) else path
        for path, name in zip(samples["path"], samples["id"], strict=True)
    ]
    texts: dict[str, int] = {}
    for name in _REPEATED:
        samples[name] = [texts.setdefault(text, len(texts)) for text in samples[name]]
    values = {
        "run": summary["manifest"]["source"]["key"],
        "n": summary["n"],
        "texts": [*texts],
        "samples": samples,
        "bins": summary["map"]["bins"],
        "cells": summary["map"]["cells"],
        "triggers": {
            one["number"]: {name: one[name] for name in ("scale", "shift")} for one in summary["triggers"]
        },
    }
    text = json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    # Escaped by JSON's own rules, so that no text can end the element or open a comment.
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _rounded(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else value
