"""What the page says, as plain values: every number on it is made here and can be tested without HTML."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int64, UInt8
from PIL import Image

from clipguard.data.writer import png
from clipguard.outputs.report.plot import entropy_map
from clipguard.outputs.samples import Table, read_samples
from clipguard.outputs.summary_view import read_checked_summary
from clipguard.runs import RunFolder, read_image_set
from clipguard.triggers.affine import AffineTrigger, read_triggers
from clipguard.types import STATES, Images, Partition

TOP: Final = 100
"""How many of the most suspicious samples are shown."""

THUMBNAIL: Final = 80
"""Longest side in pixels: 100 incompressible ones then stay below 2.6 MB."""

EXAMPLES: Final = 6
"""How many clean samples are shown with each reconstructed trigger."""

CLASSES: Final = 40
"""How many classes are listed, most flagged first."""

_GREY: Final = 128.0


def summarize(run_dir: Path | str) -> dict[str, Any]:
    """Return what the page says about a finished run, in bounded size.

    Keys: `run` (a `RunSummary`) and, as JSON values, `manifest`, `n`, `statuses`, `classes` (`listed` and
    `others`), `map` (see `entropy_map`), `top` (the most suspicious samples in order, thumbnails as data
    URIs) and `triggers` (each reconstructed trigger, alone and put on clean samples).

    Raises:
        ClipguardError: no run folder, a run that is not finished or of another version, or damaged files.
    """
    folder = RunFolder.read(run_dir)
    run = read_checked_summary(folder.path)
    samples, partition = read_samples(folder.path)
    order = np.argsort(samples["rank"], kind="stable")[:TOP].astype(np.int64)
    return {
        "run": run,
        "manifest": folder.manifest,
        "n": len(partition),
        "statuses": _statuses(partition),
        "classes": _classes(samples, partition, run.few_clean),
        "map": entropy_map(
            samples["guide_rank"],
            samples["early_rank"],
            partition,
            marked=order,
            marked_as=f"the {len(order)} most suspicious samples",
        ),
        "top": _top(samples, order, folder),
        "triggers": _triggers(samples, partition, folder, run.data.classes),
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


def _classes(samples: Table, partition: Partition, few_clean: Sequence[str]) -> dict[str, Any]:
    """Return the classes by their flagged share, and how many more there are than are listed."""
    labels, first, index, sizes = np.unique(
        samples["label"], return_index=True, return_inverse=True, return_counts=True
    )
    flagged = np.bincount(index[partition.flagged], minlength=len(labels))
    names = samples["label_name"][first]
    listed = [
        {
            "name": str(names[c]),
            "size": int(sizes[c]),
            "flagged": int(flagged[c]),
            "share": float(flagged[c] / sizes[c]),
            "few_clean": names[c] in few_clean,
        }
        for c in np.lexsort((labels, -flagged / sizes))
    ]
    return {"listed": listed[:CLASSES], "others": max(0, len(listed) - CLASSES)}


def _top(samples: Table, order: Int64[np.ndarray, " m"], folder: RunFolder) -> list[dict[str, Any]]:
    pictures = _pictures([str(samples["id"][i]) for i in order], folder)
    return [
        {
            "rank": int(samples["rank"][i]),
            "id": str(samples["id"][i]),
            "label": str(samples["label_name"][i]),
            "guide_label": str(samples["guide_label_name"][i]),
            "suspicion": _number(samples["suspicion_score"][i]),
            "trigger_score": _number(samples["trigger_score"][i]),
            "status": str(samples["status"][i]),
            "reason": str(samples["reason"][i]),
            "trigger": int(samples["trigger"][i]),
            "thumbnail": picture,
        }
        for i, picture in zip(order, pictures, strict=True)
    ]


def _pictures(ids: list[str], folder: RunFolder) -> list[str | None]:
    """Return a data URI for each id, or None for an image that the run folder no longer has."""
    stage = folder.finished("read")
    if stage is None:
        return [None] * len(ids)
    images = read_image_set(stage.path)
    rows = _rows_of(set(ids), images.ids)
    return [picture(images.images[rows[name]]) if name in rows else None for name in ids]


def _rows_of(names: set[str], ids: Sequence[str]) -> dict[str, int]:
    return {name: row for row, name in enumerate(ids) if name in names}


def _triggers(
    samples: Table, partition: Partition, folder: RunFolder, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return each reconstructed trigger alone and on the `EXAMPLES` least suspicious clean samples."""
    read, inversion = folder.finished("read"), folder.finished("trigger_inversion")
    if read is None or inversion is None:
        return []
    data = read_image_set(read.path)
    clean = np.flatnonzero(partition.clean)
    chosen = clean[np.argsort(-samples["rank"][clean], kind="stable")][:EXAMPLES]
    ids = [str(samples["id"][i]) for i in chosen]
    rows = _rows_of(set(ids), data.ids)
    plain = data.images[[rows[name] for name in ids if name in rows]]
    return [
        {"number": number, "flagged": int((partition.trigger == number - 1).sum())}
        | _trigger(trigger, plain, class_names)
        for number, trigger in enumerate(read_triggers(inversion.path), 1)
        # A run that was stopped may hold images of another size by now.
        if len(plain) and trigger.scale.shape == data.images.shape[1:]
    ]


def _trigger(trigger: AffineTrigger, plain: Images, class_names: Sequence[str]) -> dict[str, Any]:
    """Return one trigger alone and on images, and the class that it leads to, where that is known."""
    triggered, label = trigger.apply(plain), trigger.label
    return {
        "label": None if label is None or label >= len(class_names) else str(class_names[label]),
        "change": float(np.abs(triggered.astype(np.int16) - plain).mean()),
        "alone": picture(_on_grey(trigger)),
        "examples": [
            {"without": picture(a), "with": picture(b)} for a, b in zip(plain, triggered, strict=True)
        ],
    }


def _on_grey(trigger: AffineTrigger) -> UInt8[np.ndarray, "h w 3"]:
    """Return what the trigger does to a grey image, with its largest change stretched to full contrast."""
    change: Float[np.ndarray, "h w 3"] = trigger.scale * _GREY + trigger.shift - _GREY
    stretch = (_GREY - 1) / max(float(np.abs(change).max(initial=0)), 1e-6)
    return (_GREY + change * stretch).clip(0, 255).astype(np.uint8)


def picture(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """Return the image as a PNG data URI, lossless up to `THUMBNAIL` pixels a side, else shrunk to that."""
    if max(pixels.shape[:2]) > THUMBNAIL:
        shrunk = Image.fromarray(np.ascontiguousarray(pixels))
        shrunk.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        pixels = np.asarray(shrunk)
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def _number(value: Any) -> float | None:
    number = float("nan") if value is None else float(value)
    return number if np.isfinite(number) else None
