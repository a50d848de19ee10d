"""The entropy map: counts of samples in squares, and an SVG picture of them."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float64, Int64
from markupsafe import Markup
from scipy.ndimage import convolve1d

from clipguard.outputs.report.templates import FOLDER, rendered
from clipguard.types import STATES, Partition

_STYLE_OF: Final = {"trusted": "trusted", "set aside": "aside", "flagged": "flagged"}
"""Name of each status in the style sheet."""
_OPACITY: Final = (0.1, 0.2, 0.3, 0.42, 0.54, 0.67, 0.8, 0.95)


def entropy_map(
    guide_rank: Float64[np.ndarray, " n"],
    early_rank: Float64[np.ndarray, " n"],
    partition: Partition,
    marked: Int64[np.ndarray, " m"],
    marked_as: str,
) -> dict[str, Any]:
    """Return the map as JSON values whose size does not grow with n.

    `cells[status][y][x]` counts the samples of a status in a square. x follows the guide's rank, y the
    early-training model's, both from 0. `points` are the (x, y) of the `marked` samples.
    """
    bins = int(np.clip(np.sqrt(len(guide_rank)) / 1.7, 12, 60))
    column = np.clip((guide_rank * bins).astype(np.int64), 0, bins - 1)
    row = np.clip((early_rank * bins).astype(np.int64), 0, bins - 1)
    cells = {}
    for status in _STYLE_OF:
        mask = partition.has(*(state for state, name in STATES.items() if name.status == status))
        counts = np.bincount((row * bins + column)[mask], minlength=bins * bins)
        cells[status] = counts.reshape(bins, bins).tolist()
    points = np.stack([guide_rank[marked], early_rank[marked]], 1).round(4).tolist()
    return {"bins": bins, "cells": cells, "points": points, "marked_as": marked_as}


def entropy_map_svg(drawn: Mapping[str, Any], title: str = "Entropy map") -> str:
    """Return a standalone SVG picture of what `entropy_map` returned, for light and dark, without scripts."""
    counts = ", ".join(f"{int(np.sum(cells)):,} {status}" for status, cells in drawn["cells"].items())
    description = f"Samples by the guide's and the early-training model's rank of their label: {counts}."
    return rendered(
        "map.svg.j2",
        **drawn,
        title=title,
        description=description,
        style=Markup(map_style()),
        paths=_paths(drawn["cells"]),
        opacities=_OPACITY,
    )


def map_style() -> str:
    """Return the style sheet inside the map."""
    return (FOLDER / "map.css").read_text(encoding="utf-8")


def _paths(cells: Mapping[str, Any]) -> list[tuple[str, float, Markup]]:
    """Return style, opacity and squares of each status and density: a square has its commonest status."""
    counts = np.array([cells[status] for status in _STYLE_OF], dtype=np.float64)
    for axis in (1, 2):
        # Blurred by one square, so that the eye sees density and not chance.
        counts = convolve1d(counts, (0.25, 0.5, 0.25), axis=axis, mode="nearest")
    total, commonest = counts.sum(0), counts.argmax(0)
    # Logarithmic: the corner where a backdoor sits can hold a hundred times what an ordinary square holds.
    density = np.log1p(total) / max(np.log1p(total.max(initial=0)), 1e-9)
    level = np.clip(np.ceil(len(_OPACITY) * density).astype(int) - 1, 0, None)
    return [
        (style, opacity, Markup(_squares(mask)))
        for number, style in enumerate(_STYLE_OF.values())
        for step, opacity in enumerate(_OPACITY)
        if (mask := (commonest == number) & (level == step) & (total > 0.2)).any()
    ]


def _squares(mask: Bool[np.ndarray, "b b"]) -> str:
    """Return path data that covers the squares of `mask`, neighbours in a row as one rectangle."""
    turns = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    starts, ends = np.argwhere(turns == 1), np.argwhere(turns == -1)
    return "".join(f"M{x} {y}H{end}v1H{x}z" for (y, x), (_, end) in zip(starts, ends, strict=True))
