"""What the page says, as plain values: every number on it is made here and can be tested without HTML."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int64, UInt8
from PIL import Image

from clipguard.data.listing import skipped_words
from clipguard.data.writer import png
from clipguard.outputs.report.plot import entropy_map
from clipguard.outputs.samples import Table, read_samples, read_texts
from clipguard.runs import RunFolder, ShardedArray, read_table
from clipguard.runs.summary import read_summary
from clipguard.triggers.affine import AffineTrigger, read_triggers
from clipguard.types import STATES, Images, Partition, State

TOP: Final = 100
"""How many of the most suspicious samples are shown."""

THUMBNAIL: Final = 80
"""Longest side in pixels: 100 incompressible ones then stay below 2.6 MB."""

EXAMPLES: Final = 6
"""How many clean samples are shown with each reconstructed trigger."""

CLASSES: Final = 40
"""How many classes are listed, most flagged first."""

_NUMBERS: Final = ("rank", "poison_score", "trigger_score", "trigger")
_GREY: Final = 128.0

Picture = UInt8[np.ndarray, "h w 3"]


def summarize(run_dir: Path | str) -> dict[str, Any]:
    """Return what the page says about a finished run, in bounded size.

    Keys: `run` (a `RunSummary`) and, as JSON values, `manifest`, `n`, `skipped` (files left out, in words),
    `statuses`, `classes` (`listed` and `others`), `map` (see `entropy_map`), `top` (the most suspicious
    samples in order, thumbnails as data URIs) and `triggers` (each reconstructed trigger, alone and put on
    clean samples).

    Raises:
        ClipguardError: no run folder, a run that is not finished or of another version, or damaged files.
    """
    folder = RunFolder.read(run_dir)
    run = read_summary(folder.path)
    samples, partition = read_samples(folder.path, order="table")
    order = np.argsort(samples["rank"], kind="stable").astype(np.int64)
    top, least = order[:TOP], order[partition.clean[order]][::-1][:EXAMPLES]
    texts = read_texts(folder.path, np.concatenate([top, least]))
    images = _images(set(texts["id"]), folder)
    pictures = [images.get(name) for name in texts["id"]]
    return {
        "run": run,
        "manifest": folder.manifest,
        "n": len(partition),
        "skipped": skipped_words(run.data.skipped),
        "statuses": _statuses(partition),
        "classes": _classes(samples["label"], partition, run.few_clean, folder.path),
        "map": entropy_map(
            samples["guide_rank"],
            samples["early_rank"],
            partition,
            marked=top,
            marked_as=f"the {len(top)} most suspicious samples",
        ),
        "top": [
            _sample(samples, partition, row, {name: values[place] for name, values in texts.items()})
            | {"thumbnail": None if image is None else picture(image)}
            for place, (row, image) in enumerate(zip(top.tolist(), pictures, strict=False))
        ],
        "triggers": _triggers([one for one in pictures[len(top) :] if one is not None], partition, folder),
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
    names = read_texts(run, first[order])["given_label"]
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


def _images(names: set[str], folder: RunFolder) -> dict[str, Picture]:
    """Return the images of these samples by name, as the scan saw them, if it still has them.

    By name, since whoever sorts the table must not see other pictures.
    """
    stage, read = folder.finished("images"), folder.finished("embeddings")
    if stage is None or read is None:
        return {}
    images, n = ShardedArray.of(stage.path), 0
    places: dict[str, int] = {}
    for file in sorted((read.path / "metadata").glob("*.parquet")):
        ids = read_table(file, ["image_path"])["image_path"].tolist()
        places |= {name: place for place, name in enumerate(ids, n) if name in names}
        n += len(ids)
    # A scan that was stopped may have left images of other data rows, or of another size.
    if images.shape != (n, *read_summary(folder.path).data.size, 3):
        return {}
    return dict(zip(places, images[np.array([*places.values()], np.int64)], strict=True))


def _sample(samples: Table, partition: Partition, row: int, texts: dict[str, str]) -> dict[str, Any]:
    """Return what is shown of a sample, None for NaN."""
    numbers = {name: samples[name][row].item() for name in _NUMBERS}
    state = STATES[State(partition.state[row])]
    return {
        **texts,
        "status": state.status,
        "reason": state.reason,
        **{name: value if np.isfinite(value) else None for name, value in numbers.items()},
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
        "alone": picture(_on_grey(trigger)),
        "examples": [
            {"without": picture(a), "with": picture(b)} for a, b in zip(plain, triggered, strict=True)
        ],
    }


def _on_grey(trigger: AffineTrigger) -> Picture:
    """Return what the trigger does to a grey image, with its largest change stretched to full contrast."""
    change: Float[np.ndarray, "h w 3"] = trigger.scale * _GREY + trigger.shift - _GREY
    stretch = (_GREY - 1) / max(float(np.abs(change).max(initial=0)), 1e-6)
    return (_GREY + change * stretch).clip(0, 255).astype(np.uint8)


def picture(pixels: Picture) -> str:
    """Return the image as a PNG data URI, lossless up to `THUMBNAIL` pixels a side, else shrunk to that."""
    if max(pixels.shape[:2]) > THUMBNAIL:
        shrunk = Image.fromarray(np.ascontiguousarray(pixels))
        shrunk.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        pixels = np.asarray(shrunk)
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()
