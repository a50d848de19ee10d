"""Classifiers trained here, and a cache of them by the content of what they were trained on.

CACHE/victims/<key>.safetensors     weights, the spec in the header
CACHE/victims/<key>.json            seconds, threads, recipe; written last
CACHE/victims/<key>.checkpoint      a training that has not come to its end; it goes on there
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Int64

from clipguard.compute.device import arithmetic
from clipguard.compute.recipes import Recipe
from clipguard.compute.training import EpochHook, cross_entropy, fit
from clipguard.models.pretrained import take_body
from clipguard.models.spec import ModelSpec, Normalized, build, load, save
from clipguard.runs import read_json, write_json
from clipguard.runs.locks import locked
from clipguard.seeds import Seed
from clipguard.types import History, ImageSet

VERSION: Final = 1
"""To be raised whenever the training changes, so that no model of an older release is read from a cache."""

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierConfig:
    """How a classifier is made: everything but its data.

    Attributes:
        spec: the net.
        recipe: its training.
        seed: of its initial weights and of its training.
        start: weights of the same net (safetensors) that it starts from, but for the head; None starts anew.
    """

    spec: ModelSpec
    recipe: Recipe
    seed: Seed
    start: Path | None = None


def train_classifier(
    config: ClassifierConfig,
    data: ImageSet,
    rows: Int64[np.ndarray, "m"],
    *,
    on_epoch: EpochHook | None = None,
    checkpoint: Path | None = None,
    initial: Seed | None = None,
) -> tuple[Normalized, History]:
    """Return a classifier trained on the given rows by their labels, and its history.

    Args:
        config: net, recipe and seed.
        data: where the rows are.
        rows: to train on.
        on_epoch: called after each epoch.
        checkpoint: file in which finished epochs are noted; a training goes on there.
        initial: seed of the initial weights; the seed's child `init` if not given.

    Raises:
        ClipguardError: the training diverged, there are no rows, or the weights to start from do not fit.
    """
    initial = initial or config.seed.child("init")
    model = build(config.spec, initial)
    if config.start is not None:
        take_body(model, config.start, initial.child("head"))
    # Copied: torch warns of labels that it cannot write to.
    loss, seed = cross_entropy(data.labels.copy()), config.seed.child("fit")
    return model, fit(model, data.images, rows, loss, config.recipe, seed, on_epoch, checkpoint)


def cached_classifier(
    config: ClassifierConfig,
    data: ImageSet,
    cache: Path,
    keep: Bool[np.ndarray, "n"] | None = None,
    on_epoch: EpochHook | None = None,
) -> tuple[Normalized, float]:
    """Return a classifier trained on `data` (on the rows of `keep`) and the seconds its training took.

    It is read from `cache` where data, labels, spec, recipe, seed, number of threads and GPU are the same to
    the bit. Of two processes that need the same one, the second waits for the first.
    """
    rows = np.arange(len(data)) if keep is None else np.flatnonzero(keep)
    path = cache / "victims" / f"{_key(config, data, rows)}.safetensors"
    note = path.with_suffix(".json")
    with locked(path.with_name(f".{path.stem}.lock")):
        if not note.exists():
            checkpoint = path.with_suffix(".checkpoint")
            model, history = train_classifier(config, data, rows, on_epoch=on_epoch, checkpoint=checkpoint)
            save(model, config.spec, path)
            threads, recipe = torch.get_num_threads(), asdict(config.recipe)
            write_json(note, {"seconds": history.seconds, "threads": threads, "recipe": recipe})
            checkpoint.unlink(missing_ok=True)
        # Read back even when it was trained just now, so that both ways give the same model.
        return load(path, config.spec), float(read_json(note)["seconds"])


def _key(config: ClassifierConfig, data: ImageSet, rows: Int64[np.ndarray, "m"]) -> str:
    images = hashlib.sha256()
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        images.update(np.ascontiguousarray(data.images[rows[start : start + _ROWS_AT_ONCE]]).data)
    parts: dict[str, Any] = {
        "version": VERSION,
        "spec": asdict(config.spec),
        "recipe": asdict(config.recipe),
        "seed": asdict(config.seed),
        # Sums in another order give other weights.
        **arithmetic(),
        "images": [list(data.images.shape[1:]), images.hexdigest()],
        "labels": hashlib.sha256(data.labels[rows].tobytes()).hexdigest(),
    }
    if config.start is not None:
        parts["start"] = hashlib.sha256(config.start.read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]
