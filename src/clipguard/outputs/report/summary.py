"""What the page says, as plain values: every number on it is made here and can be tested without HTML."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int64, Shaped, UInt8
from PIL import Image

from clipguard.errors import ClipguardError
from clipguard.outputs.report.damage import damage_of_samples, damage_of_summary
from clipguard.outputs.report.plot import entropy_map
from clipguard.runs import RunFolder, read_image_set, read_json, read_table
from clipguard.triggers.affine import AffineTrigger, read_triggers
from clipguard.types import Images

TOP: Final = 100
"""How many of the most suspicious samples are shown."""

THUMBNAIL: Final = 80
"""Longest side in pixels: 100 incompressible ones then stay below 2.6 MB."""

EXAMPLES: Final = 6
"""How many trusted samples are shown with what the flagged ones share."""

CLASSES: Final = 40
"""How many classes are listed, most flagged first."""

Table = dict[str, Shaped[np.ndarray, "..."]]


def summarize(run_dir: Path | str) -> dict[str, Any]:
    """Return what is to be said about a finished run, as JSON values of bounded size.

    Keys: `run` (the run's own summary.json), `manifest`, `counts`, `classes` (`listed`, `others`), `map`
    (see `entropy_map`), `top`, the most suspicious samples in order, with their thumbnails as data URIs, and
    `shared`: what the flagged samples have in common, put on trusted ones, a trigger each.

    Raises:
        ClipguardError: no run folder, a run that is not finished, or damaged files.
    """
    folder = RunFolder.read(run_dir)
    for name in ("summary.json", "samples.parquet"):
        if not (folder.path / name).is_file():
            raise ClipguardError(
                f"run folder {folder.path} has no {name}: the run is not finished, run it again"
            )
    run = read_json(folder.path / "summary.json")
    if field := damage_of_summary(run):
        raise ClipguardError(f"{folder.path / 'summary.json'} is damaged ({field}): delete it and run again")
    samples = read_table(folder.path / "samples.parquet")
    if column := damage_of_samples(samples):
        raise ClipguardError(
            f"{folder.path / 'samples.parquet'} lacks the column {column}, or it is damaged: delete the file "
            "and run again"
        )
    order = np.argsort(samples["rank"], kind="stable")[:TOP].astype(np.int64)
    return {
        "run": run,
        "manifest": folder.manifest,
        "counts": _counts(samples),
        "classes": _classes(samples, (run.get("split") or {}).get("starved") or ()),
        "map": entropy_map(
            samples["guide_rank"],
            samples["early_rank"],
            samples["is_clean"],
            samples["is_triggered"],
            marked=order,
            marked_as=f"the {len(order)} most suspicious samples",
        ),
        "top": _top(samples, order, folder),
        "shared": _shared(samples, folder, run["data"].get("classes") or []),
    }


def _counts(samples: Table) -> dict[str, int]:
    n, flagged, trusted = (
        len(samples["id"]),
        int(samples["is_triggered"].sum()),
        int(samples["is_clean"].sum()),
    )
    return {"samples": n, "flagged": flagged, "trusted": trusted, "unused": n - flagged - trusted}


def _classes(samples: Table, starved: Sequence[str]) -> dict[str, Any]:
    """Return the classes by their flagged share, and how many more there are than are listed."""
    labels, first, index, sizes = np.unique(
        samples["label"], return_index=True, return_inverse=True, return_counts=True
    )
    flagged = np.bincount(index[samples["is_triggered"]], minlength=len(labels))
    trusted = np.bincount(index[samples["is_clean"]], minlength=len(labels))
    names = samples["label_name"][first]
    listed = [
        {
            "name": str(names[c]),
            "size": int(sizes[c]),
            "flagged": int(flagged[c]),
            "trusted": int(trusted[c]),
            "share": float(flagged[c] / sizes[c]),
            "starved": names[c] in starved,
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
            "trigger": _number(samples["trigger_score"][i]),
            "guide_nll": _number(samples["guide_nll"][i]),
            "early_nll": _number(samples["early_nll"][i]),
            "flagged": bool(samples["is_triggered"][i]),
            "mislabelled": bool(samples["is_mislabelled"][i]),
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
    wanted = set(ids)
    rows = {name: row for row, name in enumerate(images.ids) if name in wanted}
    return [png(images.images[rows[name]]) if name in rows else None for name in ids]


def _shared(samples: Table, folder: RunFolder, classes: list[Any]) -> list[dict[str, Any]]:
    """Return each recovered trigger on the `EXAMPLES` most trusted samples, and how much it changes them."""
    images, evidence = folder.finished("read"), folder.finished("evidence")
    if images is None or evidence is None or not (triggers := read_triggers(evidence.path)):
        return []
    data = read_image_set(images.path)
    rows = {name: row for row, name in enumerate(data.ids)}
    trusted = np.flatnonzero(samples["is_clean"])
    chosen = trusted[np.argsort(-samples["rank"][trusted], kind="stable")][:EXAMPLES]
    ids = [str(samples["id"][i]) for i in chosen]
    plain = data.images[[rows[name] for name in ids if name in rows]]
    # A run that was stopped may hold images of another size by now.
    fitting = [trigger for trigger in triggers if trigger.scale.shape == data.images.shape[1:]]
    return [_shown(trigger, plain, classes) for trigger in fitting if len(plain)]


def _shown(trigger: AffineTrigger, plain: Images, classes: list[Any]) -> dict[str, Any]:
    """Return one trigger on images, and the class that it leads to, where it was told apart from others."""
    stamped, label = trigger.apply(plain), trigger.label
    return {
        "label": None if label is None or label >= len(classes) else str(classes[label]),
        "change": float(np.abs(stamped.astype(np.int16) - plain).mean()),
        "examples": [{"plain": png(a), "stamped": png(b)} for a, b in zip(plain, stamped, strict=True)],
    }


def png(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """Return the image as a PNG data URI, lossless up to `THUMBNAIL` pixels a side, else shrunk to that."""
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _number(value: Any) -> float | None:
    number = float("nan") if value is None else float(value)
    return number if np.isfinite(number) else None
