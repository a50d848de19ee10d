"""The entropy map as SVG text, for light and dark, without scripts."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float64, Int64

from clipguard.types import STATES, Partition

_SIDE: Final = 520
_LEFT: Final = 74
_TOP: Final = 46
_STYLE_OF: Final = {"trusted": "trusted", "set aside": "aside", "flagged": "flagged"}
"""Name of each status in the style sheet."""
_OPACITY: Final = (0.1, 0.2, 0.3, 0.42, 0.54, 0.67, 0.8, 0.95)

_STYLE: Final = """
.cg{--cg-bg:#fff;--cg-ink:#16191d;--cg-muted:#5b6470;--cg-line:#d5dae0;
--cg-trusted:#0072b2;--cg-aside:#8d96a1;--cg-flagged:#d55e00;--cg-text-flagged:#b34700;
font:13px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
@media (prefers-color-scheme:dark){.cg{--cg-bg:#161b22;--cg-ink:#e6e9ee;--cg-muted:#a3adb9;--cg-line:#39424e;
--cg-trusted:#5cb3ea;--cg-aside:#8b95a3;--cg-flagged:#ff8f4a;--cg-text-flagged:#ff9f63}}
.cg text{fill:var(--cg-ink)}.cg .muted{fill:var(--cg-muted)}.cg .strong{font-weight:650}
.cg .back{fill:var(--cg-bg)}.cg .frame{fill:none;stroke:var(--cg-line)}.cg .grid{stroke:var(--cg-line)}
.cg .trusted{fill:var(--cg-trusted)}.cg .aside{fill:var(--cg-aside)}.cg .flagged{fill:var(--cg-flagged)}
.cg text.flagged{fill:var(--cg-text-flagged)}
.cg .mark{fill:var(--cg-ink);stroke:var(--cg-bg);stroke-width:.8}
"""


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
    """Return a standalone SVG picture of what `entropy_map` returned."""
    parts = [
        _open(_SIDE + _LEFT + 26, _SIDE + 196, title, _describe(drawn)),
        *_axes(),
        *_cells(drawn),
        f'<rect class="frame" x="{_LEFT}" y="{_TOP}" width="{_SIDE}" height="{_SIDE}"/>',
        *(
            f'<circle class="mark" cx="{_LEFT + x * _SIDE:.1f}" cy="{_TOP + (1 - y) * _SIDE:.1f}" r="2.6"/>'
            for x, y in drawn["points"]
        ),
        *_corners(),
        *_legend(str(drawn["marked_as"])),
        "</svg>",
    ]
    return "\n".join(parts)


def _open(width: int, height: int, title: str, description: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="cg" viewBox="0 0 {width} {height}" role="img">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc><style>{_STYLE}</style>"
        f'<rect class="back" width="{width}" height="{height}" rx="8"/>'
    )


def _text(x: int | float, y: int | float, text: str, style: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{style}" text-anchor="{anchor}">{escape(text)}</text>'


def _describe(drawn: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{int(np.sum(drawn['cells'][status])):,} {status}" for status in _STYLE_OF)
    return f"Samples by the guide's and the early-training model's rank of their label: {counts}."


def _axes() -> list[str]:
    bottom, middle = _TOP + _SIDE, _TOP + _SIDE / 2
    parts = []
    for tick in (0, 0.2, 0.4, 0.6, 0.8, 1):
        x, y = _LEFT + tick * _SIDE, bottom - tick * _SIDE
        parts.append(f'<path class="grid" d="M{x:g} {bottom}v5M{_LEFT} {y:g}h-5"/>')
        parts.append(_text(x, bottom + 20, f"{tick:g}", "muted", "middle"))
        parts.append(_text(_LEFT - 10, y + 4, f"{tick:g}", "muted", "end"))
    x_title = "guide’s rank: how badly the given label fits the image →"
    y_title = "early-training model’s rank: how late it learns the label →"
    parts.append(_text(_LEFT + _SIDE / 2, bottom + 88, x_title, "", "middle"))
    parts.append(
        f'<g transform="translate(20 {middle:g}) rotate(-90)">{_text(0, 0, y_title, "", "middle")}</g>'
    )
    return parts


def _cells(drawn: Mapping[str, Any]) -> list[str]:
    """Return one path for each status and density: a square has its commonest status's colour."""
    counts = _smooth(np.array([drawn["cells"][status] for status in _STYLE_OF], dtype=np.float64))
    total, commonest = counts.sum(0), counts.argmax(0)
    # Logarithmic: the corner where a backdoor sits can hold a hundred times what an ordinary square holds.
    density = np.log1p(total) / max(np.log1p(total.max(initial=0)), 1e-9)
    level = np.clip(np.ceil(len(_OPACITY) * density).astype(int) - 1, 0, None)
    # Shared, rounded edges: squares that only nearly touch show hairlines between them.
    edges = [f"{_SIDE * i / drawn['bins']:.1f}" for i in range(drawn["bins"] + 1)]
    paths = []
    for number, style in enumerate(_STYLE_OF.values()):
        for step, opacity in enumerate(_OPACITY):
            squares = _squares((commonest == number) & (level == step) & (total > 0.2), edges)
            if squares:
                paths.append(f'<path class="{style}" fill-opacity="{opacity}" d="{squares}"/>')
    where = f'transform="translate({_LEFT} {_TOP + _SIDE}) scale(1 -1)" shape-rendering="crispEdges"'
    return [f"<g {where}>", *paths, "</g>"]


def _smooth(counts: Float64[np.ndarray, "3 b b"]) -> Float64[np.ndarray, "3 b b"]:
    """Return the counts blurred by one square, so that the eye sees density and not chance."""
    for axis in (1, 2):
        wide = np.pad(counts, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        before, middle, after = (np.take(wide, range(k, k + counts.shape[axis]), axis) for k in range(3))
        counts = (before + 2 * middle + after) / 4
    return counts


def _squares(mask: Bool[np.ndarray, "b b"], edges: Sequence[str]) -> str:
    """Return path data that covers the squares of `mask`, neighbours in a row as one rectangle."""
    turns = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    starts, ends = np.argwhere(turns == 1), np.argwhere(turns == -1)
    return "".join(
        f"M{edges[x]} {edges[y]}H{edges[end]}V{edges[y + 1]}H{edges[x]}z"
        for (y, x), (_, end) in zip(starts, ends, strict=True)
    )


def _corners() -> list[str]:
    right, bottom = _LEFT + _SIDE, _TOP + _SIDE
    return [
        _text(_LEFT, _TOP - 26, "ordinary samples", "strong"),
        _text(_LEFT, _TOP - 9, "label fits, learnt late", "muted"),
        _text(right, _TOP - 26, "wrong labels", "strong", "end"),
        _text(right, _TOP - 9, "label does not fit, learnt late", "muted", "end"),
        _text(_LEFT, bottom + 44, "easy, or clean-label poison", "strong"),
        _text(_LEFT, bottom + 61, "label fits, learnt early", "muted"),
        _text(right, bottom + 44, "backdoors", "strong flagged", "end"),
        _text(right, bottom + 61, "label does not fit, learnt early", "muted", "end"),
    ]


def _legend(marked_as: str) -> list[str]:
    y = _TOP + _SIDE + 118
    parts = []
    for x, (status, style) in zip((0, 86, 180), _STYLE_OF.items(), strict=True):
        parts.append(f'<rect class="{style}" x="{_LEFT + x}" y="{y - 11}" width="13" height="13" rx="2"/>')
        parts.append(_text(_LEFT + x + 19, y, status))
    parts.append(f'<circle class="mark" cx="{_LEFT + 280}" cy="{y - 4.5}" r="4"/>')
    parts.append(_text(_LEFT + 291, y, marked_as))
    for step, opacity in enumerate(_OPACITY):
        shade = f'x="{_LEFT + 13 * step}" y="{y + 10}" width="13" height="9" fill-opacity="{opacity}"'
        parts.append(f'<rect class="aside" {shade}/>')
    parts.append(_text(_LEFT + 114, y + 19, "few to many samples (logarithmic)", "muted"))
    return parts
