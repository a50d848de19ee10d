"""How much of the data fits on the page: texts first, then pictures in what is left."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from markupsafe import escape

from clipguard.outputs.report.embedded import as_json
from clipguard.outputs.report.templates import LONGEST, LONGEST_PATH, shortened

PAGE: Final = 2_950_000
"""Bytes of the page, roughly."""

FLAGGED_TEXTS: Final = 1_200_000
"""Bytes of what is said of the flagged samples: hostile names are as long as they like."""

OTHER_TEXTS: Final = 200_000

_FIXED: Final = 280_000
"""Style, script, map, classes, warnings, configuration."""

_MARKUP: Final = 780
"""Of one sample: elements, hashes, numbers."""


def text_bytes(sample: dict[str, Any]) -> int:
    """Return how many bytes the page spends on what it says of a sample."""
    path = sample["path"] or sample["id"]
    exact = len(as_json(sample["id"])) + (len(as_json(path)) if path != sample["id"] else 0)
    names = [sample["given"], sample["predicted"]]
    return (
        _MARKUP
        + exact
        + 2 * _as_html(path, LONGEST_PATH)
        + sum(3 * _as_html(name, LONGEST) for name in names)
    )


def _as_html(text: str, longest: int) -> int:
    return len(escape(shortened(text, longest)).encode())


def fitting(samples: Sequence[dict[str, Any]], limit: int) -> int:
    """Return how many of the first samples can be shown within `limit` bytes."""
    return int(np.searchsorted(np.cumsum([text_bytes(sample) for sample in samples]), limit, side="right"))


def bytes_left(samples: Sequence[dict[str, Any]], pictures: int) -> int:
    """Return the bytes for thumbnails, before base64, beside other `pictures` of so many characters."""
    texts = sum(text_bytes(sample) for sample in samples)
    return max(0, (PAGE - _FIXED - texts - pictures) * 3 // 4)
