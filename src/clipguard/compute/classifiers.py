"""Classifiers trained from scratch, cached by the content of what they were trained on.

CACHE/victims/<key>.safetensors     weights, the spec in the header
CACHE/victims/<key>.json            seconds, threads, recipe; written last
CACHE/victims/<key>.checkpoint      a training that has not come to its end; it goes on there
"""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool

from clipguard.compute.training import EpochHook, Recipe, cross_entropy, fit
from clipguard.models.spec import ModelSpec, Normalized, build, load, save
from clipguard.runs import read_json, write_json
from clipguard.runs.process_locks import locked
from clipguard.seeds import Seed
from clipguard.types import ImageSet


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifierConfig:
    """How a victim is made: everything but its data.

    Attributes:
        spec: the net.
        recipe: its training.
        seed: of its initial weights and of its training.
    """

    spec: ModelSpec
    recipe: Recipe
    seed: Seed


def trained(
    data: ImageSet,
    schooling: ClassifierConfig,
    cache: Path,
    keep: Bool[np.ndarray, "n"] | None = None,
    on_epoch: EpochHook | None = None,
) -> tuple[Normalized, float]:
    """Return a classifier trained on `data` (on the rows of `keep`) and the seconds its training took.

    One whose data, labels, spec, recipe and seed are the same to the bit is read from `cache`; of two
    processes that want the same one, the second waits for the first.
    """
    rows = np.arange(len(data)) if keep is None else np.flatnonzero(keep)
    path = cache / "victims" / f"{_key(data, rows, schooling)}.safetensors"
    note = path.with_suffix(".json")
    with locked(path.with_name(f".{path.stem}.lock")):
        if not note.exists():
            spec, recipe, seed = schooling.spec, schooling.recipe, schooling.seed
            model = build(spec, seed.child("init"))
            loss = cross_entropy(data.labels)
            partly = path.with_suffix(".checkpoint")
            history = fit(model, data.images, rows, loss, recipe, seed.child("fit"), on_epoch, partly)
            save(model, spec, path)
            about = {"seconds": history.seconds, "threads": torch.get_num_threads()}
            write_json(note, {**about, "recipe": asdict(recipe)})
            partly.unlink(missing_ok=True)
        # Read back even when it was trained just now, so that both ways give the same model.
        return load(path, schooling.spec), float(read_json(note)["seconds"])


def _key(data: ImageSet, rows: np.ndarray, schooling: ClassifierConfig) -> str:
    digest = hashlib.sha256()
    how = repr((schooling.spec, schooling.recipe, schooling.seed))
    for part in (data.images[rows].tobytes(), data.labels[rows].tobytes(), how.encode()):
        digest.update(part)
    return digest.hexdigest()[:20]
