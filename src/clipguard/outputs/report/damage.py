"""What a finished run's files must look like before a page is made of them: a run folder may be anybody's."""

from collections.abc import Mapping
from types import NoneType
from typing import Final

import numpy as np
from jaxtyping import Shaped

_NUMBER: Final = (int, float, NoneType)
_TEXT: Final = (str, NoneType)
_LIST: Final = (list, NoneType)
_PART: Final = (dict, NoneType)
_RATES: Final[dict[str, tuple[type, ...]]] = {
    "measured_on": _TEXT,
    "accuracy": _NUMBER,
    "attack_success": _NUMBER,
    "robust_accuracy": _NUMBER,
    "target_recall": _NUMBER,
}
_WANTED: Final[dict[str, dict[str, tuple[type, ...]]]] = {
    "": {"command": (str,), "data": (dict,), "verdict": (dict,)}
    | dict.fromkeys(("guide", "before", "after", "split", "seconds"), _PART)
    | dict.fromkeys(("warnings", "curve"), _LIST),
    "data": {"location": _TEXT, "classes": _LIST, "unreadable": (int, NoneType), "empty_classes": _LIST},
    "verdict": {"verdict": (str,), "reasons": _LIST},
    "guide": {"name": _TEXT, "agreement": _NUMBER},
    "before": _RATES,
    "after": _RATES,
    "split": {"starved": _LIST},
}
"""Part of summary.json, its fields, and what each may be."""

_COLUMNS: Final = {
    "OUT": ("id", "label_name", "guide_label_name"),
    "iuf": ("guide_nll", "early_nll", "guide_rank", "early_rank", "trigger_score", "suspicion_score"),
    "iu": ("label", "rank"),
    "b": ("is_clean", "is_triggered", "is_mislabelled"),
}
"""Kinds of numpy values, and the columns of samples.parquet that hold them."""


def damage_of_summary(run: object) -> str | None:
    """Return the first field of summary.json that is missing or no value of its kind, or None."""
    if not isinstance(run, dict):
        return "everything"
    for part, fields in _WANTED.items():
        values = run if not part else run.get(part) or {}
        for name, kinds in fields.items():
            if not isinstance(values.get(name), kinds):
                return f"{part}.{name}".removeprefix(".")
    if not all(isinstance(value, (int, float)) for value in (run.get("seconds") or {}).values()):
        return "seconds"
    if not all(_is_point(point) for point in run.get("curve") or ()):
        return "curve"
    texts = [*(run["verdict"].get("reasons") or ()), *(run.get("warnings") or ())]
    return None if all(isinstance(text, str) for text in texts) else "reasons or warnings"


def _is_point(point: object) -> bool:
    """Return whether it is a step of the cure with rates, as the curve is drawn of."""
    if not isinstance(point, dict) or not isinstance(point.get("step"), (int, float)):
        return False
    return all(isinstance(value, _NUMBER) for value in point.values())


def damage_of_samples(samples: Mapping[str, Shaped[np.ndarray, "..."]]) -> str | None:
    """Return the first column of samples.parquet that is missing or of another kind, or None."""
    for kinds, names in _COLUMNS.items():
        for name in names:
            if name not in samples or samples[name].dtype.kind not in kinds:
                return name
    return None
