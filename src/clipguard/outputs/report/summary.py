"""What the page says, as plain values: every number on it is made here and can be tested without HTML."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int64

from clipguard.outputs.report.causes import Cause, causes_of
from clipguard.outputs.report.columns import SCORE, texts_of, with_losses
from clipguard.outputs.report.next_steps import next_steps
from clipguard.outputs.report.pictures import (
    SIDE,
    Picture,
    eight_bits,
    images_by_id,
    picture,
    thumbnails,
    trigger_alone,
)
from clipguard.outputs.report.plot import entropy_map
from clipguard.outputs.samples import Table, read_samples
from clipguard.runs import RunFolder
from clipguard.runs.summary import read_summary
from clipguard.triggers.affine import AffineTrigger, read_triggers
from clipguard.types import STATES, Images, Partition, State

FLAGGED: Final = 1000
"""How many flagged samples are shown, the most suspicious first."""

UNFLAGGED: Final = 48
"""How many of the most suspicious other samples are shown, apart; `LEAST` in all where few are flagged."""

LEAST: Final = 100

MARKED: Final = 100
"""How many of the most suspicious samples are points on the map."""

TWELVE: Final = 12
"""How many samples stand for a cause."""

EXAMPLES: Final = 6
"""How many clean samples are shown with each reconstructed trigger."""

CLASSES: Final = 40
"""How many classes are listed, most flagged first."""

_NUMBERS: Final = (
    *("rank", "label", "trigger", SCORE, "q_value", "trigger_score"),
    *("guide_nll", "early_nll", "guide_rank", "early_rank"),
)


def summarize(run_dir: Path | str) -> dict[str, Any]:
    """Return what the page says about a finished run, in bounded size.

    Keys: `run` (a `RunSummary`) and, as JSON values, `manifest`, `n`, `statuses`, `classes` (`listed` and
    `others`), `map` (see `entropy_map`), `samples` (the flagged ones in order of suspicion, then the most
    suspicious others; thumbnails as data URIs), `causes` (the flagged samples in groups), `triggers` (each
    reconstructed trigger, alone and put on clean samples) and `steps` (what to do next).

    Raises:
        ClipguardError: no run folder, a run that is not finished or of another version, or damaged files.
    """
    folder = RunFolder.read(run_dir)
    run = read_summary(folder.path)
    table, partition = read_samples(folder.path)
    table = with_losses(folder.path, table)
    order = np.argsort(table["rank"], kind="stable").astype(np.int64)
    flagged = order[partition.flagged[order]][:FLAGGED]
    others = order[~partition.flagged[order]][: max(UNFLAGGED, LEAST - len(flagged))]
    least = order[partition.clean[order]][::-1][:EXAMPLES]
    rows = np.concatenate([flagged, others])
    texts = texts_of(folder.path, np.concatenate([rows, least]))
    images = images_by_id(set(texts["id"]), folder)
    pictures = [images.get(name) for name in texts["id"]]
    causes = causes_of(run.verdict.findings, partition, table["label"], table["rank"])
    triggers = _triggers([one for one in pictures[len(rows) :] if one is not None], partition, folder)
    numbers = _numbers(table, rows)
    thumbs = thumbnails(pictures[: len(rows)])
    cause_of = {int(row): place for place, cause in enumerate(causes) for row in cause.rows}
    return {
        "run": run,
        "manifest": folder.manifest,
        "n": len(partition),
        "flagged": int(partition.flagged.sum()),
        "statuses": _statuses(partition),
        "classes": _classes(table["label"], partition, run.few_clean, folder.path),
        "map": entropy_map(
            table["guide_rank"],
            table["early_rank"],
            partition,
            marked=order[:MARKED],
            marked_as=f"the {len(order[:MARKED])} most suspicious samples",
        ),
        "samples": [
            {name: values[place] for name, values in texts.items()}
            | {name: values[place] for name, values in numbers.items()}
            | _status(State(partition.state[row]))
            | {"number": place, "cause": cause_of.get(row, -1), "thumbnail": thumbs[place]}
            for place, row in enumerate(rows.tolist())
        ],
        "causes": [_cause(cause, rows, table["label"], folder.path) for cause in causes],
        "triggers": triggers,
        "steps": [step._asdict() for step in next_steps(run, folder.manifest["source"], len(flagged))],
    }


def _statuses(partition: Partition) -> dict[str, dict[str, Any]]:
    """Return for each status its samples, their share, and how many have each reason."""
    statuses: dict[str, dict[str, Any]] = {}
    for name in STATES.values():
        entry = statuses.setdefault(name.status, {"count": 0, "share": 0.0, "reasons": {}})
        count = partition.counts[name.counted_as]
        entry["count"] += count
        entry["share"] = entry["count"] / max(1, len(partition))
        if name.reason and count:
            entry["reasons"][name.reason] = count
    return statuses


def _classes(
    given: Int64[np.ndarray, "n"], partition: Partition, few_clean: Sequence[str], run: Path
) -> dict[str, Any]:
    """Return the classes by their flagged share, and how many more there are than are listed."""
    labels, first, sizes = np.unique(given, return_index=True, return_counts=True)
    flagged = np.bincount(np.searchsorted(labels, given[partition.flagged]), minlength=len(labels))
    order = np.lexsort((labels, -flagged / sizes))[:CLASSES]
    names = texts_of(run, first[order])["given"]
    listed = [
        {
            "name": name,
            "size": int(sizes[c]),
            "flagged": int(flagged[c]),
            "share": float(flagged[c] / sizes[c]),
            "few_clean": name in few_clean,
        }
        for c, name in zip(order, names, strict=True)
    ]
    return {"listed": listed, "others": len(labels) - len(listed)}


def _numbers(table: Table, rows: Int64[np.ndarray, "m"]) -> dict[str, list[float | int | None]]:
    """Return the numbers of some rows, None for what is not known."""
    numbers: dict[str, list[float | int | None]] = {}
    for name in _NUMBERS:
        values = table[name][rows].tolist() if name in table else [None] * len(rows)
        key = "poison_score" if name == SCORE else name
        numbers[key] = [None if value is None or not np.isfinite(value) else value for value in values]
    return numbers


def _status(state: State) -> dict[str, str]:
    return {"status": STATES[state].status, "reason": STATES[state].reason}


def _cause(
    cause: Cause, rows: Int64[np.ndarray, "m"], labels: Int64[np.ndarray, "n"], run: Path
) -> dict[str, Any]:
    """Return how many samples a cause has, in which classes, and the places in `rows` of the first ones."""
    places = {int(row): place for place, row in enumerate(rows)}
    classes, first, counts = np.unique(labels[cause.rows], return_index=True, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:5]
    names = texts_of(run, cause.rows[first[most]])["given"]
    return {
        "kind": cause.kind,
        "finding": cause.finding,
        "trigger": cause.trigger,
        "count": len(cause.rows),
        "classes": [[name, int(counts[at])] for name, at in zip(names, most, strict=True)],
        "other_classes": len(classes) - len(most),
        "examples": [places[row] for row in cause.rows[:TWELVE].tolist() if row in places],
        "listed": sum(row in places for row in cause.rows.tolist()),
    }


def _triggers(least: list[Picture], partition: Partition, folder: RunFolder) -> list[dict[str, Any]]:
    """Return each reconstructed trigger alone and on the least suspicious clean samples."""
    inversion = folder.finished("trigger_inversion")
    if inversion is None or not least:
        return []
    plain = np.stack(least)
    return [
        {
            "number": number,
            "flagged": int((partition.trigger == number - 1).sum()),
            **_trigger(trigger, plain),
        }
        for number, trigger in enumerate(read_triggers(inversion.path), 1)
        # A run that was stopped may hold images of another size by now.
        if trigger.scale.shape == plain.shape[1:]
    ]


def _trigger(trigger: AffineTrigger, plain: Images) -> dict[str, Any]:
    triggered = trigger.apply(plain)
    return {
        "label": trigger.label,
        "change": float(np.abs(triggered.astype(np.int16) - plain).mean()),
        "alone": picture(trigger_alone(trigger)),
        "scale": eight_bits(trigger.scale),
        "shift": eight_bits(trigger.shift),
        "examples": [
            {"without": picture(a), "with": picture(b)} for a, b in zip(plain, triggered, strict=True)
        ],
    }


def embedded(summary: dict[str, Any]) -> str:
    """Return what the page's script knows, as JSON that no text of the data can leave.

    `samples` is a column a name, in the order of the pictures; a path that is the id is None.
    """
    columns = ("id", "path", "sha256", "given", "predicted", "status", "reason", "cause", "poison_score")
    columns = (*columns, *(name for name in _NUMBERS if name not in ("label", SCORE)))
    samples = {name: [one[name] for one in summary["samples"]] for name in columns}
    samples["path"] = [p if p != i else None for p, i in zip(samples["path"], samples["id"], strict=True)]
    texts: dict[str, int] = {}
    for name in ("given", "predicted", "status", "reason"):
        samples[name] = [texts.setdefault(text, len(texts)) for text in samples[name]]
    values = {
        "run": summary["manifest"]["source"]["key"],
        "n": summary["n"],
        "texts": [*texts],
        "samples": {name: [_rounded(value) for value in values] for name, values in samples.items()},
        "bins": summary["map"]["bins"],
        "cells": summary["map"]["cells"],
        "side": SIDE,
        "triggers": {
            one["number"]: {name: one[name] for name in ("scale", "shift")} for one in summary["triggers"]
        },
    }
    text = json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    # Escaped inside JSON's own rules, so that no text can end the element or open a comment.
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _rounded(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else value
