"""The common protocol: CIFAR-10 rows, poisoned sets and victims, cached by content."""

import argparse
import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from clipguard.attacks import Attack, NeedsHelper, attack_named, prepare
from clipguard.decode import read_images
from clipguard.models import ModelSpec, Normalized, build, load, save
from clipguard.scoring import classifier_logits
from clipguard.seeds import Seed
from clipguard.sources import ImageSource
from clipguard.training import Recipe, cross_entropy, fit
from clipguard.truth import PoisonTruth
from clipguard.types import ImageSet

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CACHE = Path(os.environ.get("CLIPGUARD_CACHE", "~/.cache/clipguard/bench")).expanduser()


VICTIM = Recipe(epochs=25, lr=0.05, crop=0.0)
"""Flips but no crops: the usual zero-padded crops of 4 pixels mostly cut off a 3x3 patch in the corner, and
BadNets did not take on the development rows (ASR 5.6 % after 25 epochs; 90 % after as many without crops)."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Which rows of which file a cell trains and is tested on."""

    train_file: str
    train: tuple[int, int]
    test_file: str
    test: tuple[int, int]
    size: tuple[int, int] = (32, 32)


TABLE = Rows("cifar10/train.parquet", (0, 12_000), "cifar10/test.parquet", (0, 10_000))
DEVELOPMENT = Rows("cifar10/train.parquet", (40_000, 48_000), "cifar10/train.parquet", (48_000, 50_000))
PHOTOGRAPHS = Rows(
    "imagenette-80/train.parquet", (0, 9_469), "imagenette-80/test.parquet", (0, 3_925), (80, 80)
)
PROTOCOLS = {"table": TABLE, "development": DEVELOPMENT, "photographs": PHOTOGRAPHS}


def image_rows(file: str, rows: tuple[int, int], size: tuple[int, int]) -> ImageSet:
    """Return decoded rows; images and labels are kept in the cache."""
    source = ImageSource.open(SHARED / file, rows=rows)
    return read_images(source, size)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One attack with one seed on one choice of rows."""

    attack: str
    seed: int
    rows: Rows
    rate: float = 0.05
    target: int = 0

    @property
    def recipe(self) -> Attack:
        """The attack, with its helper net from the cache if it needs one."""
        attack = attack_named(self.attack, rate=self.rate, target=self.target)
        if not isinstance(attack, NeedsHelper):
            return attack
        return prepare(attack, self.train(), Seed(self.seed).child("helper", self.attack), CACHE / "helpers")

    def train(self) -> ImageSet:
        """Return the training set before the attack."""
        return image_rows(self.rows.train_file, self.rows.train, self.rows.size)

    def poisoned(self) -> tuple[ImageSet, PoisonTruth]:
        """Return the poisoned training set and its truth."""
        return self.recipe.poison(self.train(), Seed(self.seed).child("attack", self.attack))

    def test(self) -> ImageSet:
        """Return the untouched test set."""
        return image_rows(self.rows.test_file, self.rows.test, self.rows.size)


def trained(data: ImageSet, seed: Seed, keep: np.ndarray | None = None) -> tuple[Normalized, ModelSpec, dict]:
    """Return a classifier trained from scratch on `data` (rows `keep`), from the cache where it is there."""
    h, w = data.images.shape[1:3]
    spec = ModelSpec(num_classes=len(data.class_names), input_size=(h, w))
    rows = np.arange(len(data)) if keep is None else np.flatnonzero(keep)
    key = hashlib.sha256()
    for part in (
        data.images[rows].tobytes(),
        data.labels[rows].tobytes(),
        repr((spec, VICTIM, seed)).encode(),
    ):
        key.update(part)
    path = CACHE / "victims" / f"{key.hexdigest()[:20]}.safetensors"
    note = path.with_suffix(".json")
    if note.exists():
        return load(path, spec), spec, json.loads(note.read_text())
    path.parent.mkdir(parents=True, exist_ok=True)
    model = build(spec, seed.child("init"))
    report = lambda epoch: print(f"  epoch {epoch}/{VICTIM.epochs}", flush=True)  # noqa: E731  # a one-line log
    history = fit(model, data.images, rows, cross_entropy(data.labels), VICTIM, seed.child("fit"), report)
    save(model, spec, path)
    about = {"seconds": history.seconds, "threads": torch.get_num_threads(), "recipe": asdict(VICTIM)}
    note.write_text(json.dumps(about))
    return model, spec, about


def victim(cell: Cell) -> tuple[Normalized, ModelSpec, dict]:
    """Return the cell's victim: trained on all rows of the poisoned set."""
    return trained(cell.poisoned()[0], Seed(cell.seed).child("victim"))


def figures(model: Normalized, cell: Cell, test: ImageSet) -> dict[str, float]:
    """Return accuracy and attack success of a model on a cell's test set."""
    from clipguard.evaluate import evaluate

    attack = cell.recipe
    triggered = attack.trigger(test.images)
    logits = classifier_logits(model, test.images)
    attacked = None if triggered is None else classifier_logits(model, triggered)
    return asdict(evaluate(logits, attacked, test.labels, attack.aim(test.labels, len(test.class_names))))


def main() -> None:
    """Train the victims named on the command line, as PROTOCOL:ATTACK:SEED."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cells", nargs="+")
    for text in parser.parse_args().cells:
        protocol, attack, seed = text.split(":")
        cell = Cell(attack=attack, seed=int(seed), rows=PROTOCOLS[protocol])
        print(text, flush=True)
        model, _, about = victim(cell)
        print(text, figures(model, cell, cell.test()), f"{about['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
