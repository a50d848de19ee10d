"""What the page's script knows of a run."""

import json
from collections.abc import Mapping
from typing import Any, Final

_COLUMNS: Final = (
    *("row", "id", "path", "sha256", "given", "predicted", "status", "reason", "cause", "rank", "trigger"),
    *("poison_score", "q_value", "trigger_score", "guide_nll", "early_nll", "guide_rank", "early_rank"),
)
_REPEATED: Final = ("given", "predicted", "status", "reason")


def embedded(summary: Mapping[str, Any]) -> str:
    """Return what the script knows, as JSON in ASCII that no text of the data can leave.

    `samples` has a list a name, in the order of the pictures. A path that is the id is None, and texts that
    repeat are numbers in `texts`. `cells` counts all samples of the run by square of the map. `marks` are the
    review marks of the run folder, each with the place of its sample in `samples`, -1 for one elsewhere.
    """
    samples = {name: [_rounded(one[name]) for one in summary["samples"]] for name in _COLUMNS}
    samples["path"] = [
        None if path == name else path for path, name in zip(samples["path"], samples["id"], strict=True)
    ]
    texts: dict[str, int] = {}
    for name in _REPEATED:
        samples[name] = [texts.setdefault(text, len(texts)) for text in samples[name]]
    place_of = {row: place for place, row in enumerate(summary["rows"])}
    marks = [{**mark} for mark in summary["marks"]["entries"]]
    for mark in marks:
        mark["place"] = place_of.get(mark.pop("row"), -1)
    values = {
        "marks": {"of": summary["marks"]["sha256"], "entries": marks},
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
    return as_json(values)


def as_json(value: Any) -> str:
    """Return JSON in ASCII that can neither end the element that it stands in nor open a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _rounded(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else value
