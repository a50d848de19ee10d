"""Two attacks of our own on the development rows, of which no trigger is recovered, cured in several ways.

    python benchmarks/stand_ins.py        development rows -> results/ablation/stand-ins.json

`blur`: a tenth of the images are smeared along the rows and called airplane, a fifth along the columns and
keep their label: image-dependent, as a warp is, with covers. `component`: the one per cent of images that
show most of the third principal component are called airplane, test images are moved that way: label-only.
None of them is an attack of the table. A way that is there is not computed again.

How large a fed class counts in the cure came later than the ways to look and to unlearn, which therefore
have it as it is labelled; that the victim's activations judge it came later still. Of both, four cures tell,
which differ by their seed alone.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from scipy.ndimage import uniform_filter1d

from clipguard.compute.classifiers import ClassifierConfig, trained
from clipguard.compute.inference import classifier_logits
from clipguard.data import ImageSource
from clipguard.detection.feature_separation import FeatureSeparationConfig
from clipguard.lab.benchmark.machine import commit, machine
from clipguard.models.spec import load
from clipguard.pipeline import DefenseConfig, cure
from clipguard.pipeline.defender import Defender
from clipguard.runs import read_table
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet, image_set
from works import CACHE, RESULTS, works

FILE = RESULTS / "ablation" / "stand-ins.json"
WORK = works("development")[0]
SEED = WORK.cell.seed
TARGET = 0
USUAL = DefenseConfig(seed=SEED, activations=FeatureSeparationConfig(looks=0))
JUDGED = replace(USUAL, activations=FeatureSeparationConfig())
NO_LOOK = replace(USUAL.noise, looks=0)
AT_FIVE = replace(USUAL.noise, sure=5.0)
UNLEARNT = replace(USUAL.cure, mislabelled=1.0, relabel=0.0)


@dataclass(frozen=True)
class Way:
    """A plan, the seed of the cure alone, and whether a fed class counts for its honest labels only."""

    plan: DefenseConfig
    seed: int = SEED
    honest: bool = False


WAYS = {
    "one look, unlearnt": Way(replace(USUAL, noise=NO_LOOK, cure=UNLEARNT)),
    "another look at 5 nats, unlearnt": Way(replace(USUAL, noise=AT_FIVE, cure=UNLEARNT)),
    "another look at 9 nats, unlearnt": Way(replace(USUAL, cure=UNLEARNT)),
    "another look at 9 nats, relabelled": Way(USUAL),
}
SEEDS = range(SEED, SEED + 4)
SIZES = {f"the same, cure seed {seed}": Way(USUAL, seed) for seed in SEEDS[1:]} | {
    f"the same, honest size (default), cure seed {seed}": Way(USUAL, seed, honest=True) for seed in SEEDS
}
LOOKED_AT = {f"judged by activations, cure seed {seed}": Way(JUDGED, seed, honest=True) for seed in SEEDS}


@dataclass(frozen=True)
class StandIn:
    """A poisoned set, which of it is poison, and its triggers by name."""

    data: ImageSet
    poison: np.ndarray
    triggers: dict[str, Callable[[Images], Images]]


def smeared(images: Images, axis: int) -> Images:
    """Return images averaged over three pixels along an axis."""
    return uniform_filter1d(images.astype(np.float32), 3, axis=axis).round().astype(np.uint8)


def blur(clean: ImageSet) -> StandIn:
    """Return the set with smeared images."""
    n = len(clean)
    order = np.random.default_rng(7).permutation(n)
    rows, cover = order[: n // 10], order[n // 10 : 3 * n // 10]
    images, labels, poison = np.array(clean.images), clean.labels.copy(), np.zeros(n, bool)
    images[rows], images[cover] = smeared(images[rows], 2), smeared(images[cover], 1)
    labels[rows], poison[rows] = TARGET, True
    data = image_set(images, labels, clean.class_names, clean.ids)
    return StandIn(data, poison, {"": partial(smeared, axis=2)})


def component(clean: ImageSet) -> StandIn:
    """Return the set with changed labels alone."""
    flat = clean.images.reshape(len(clean), -1).astype(np.float32)
    centred = flat - flat.mean(0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    third = vectors[:, -3] * np.sign(vectors[np.abs(vectors[:, -3]).argmax(), -3])
    shows = np.where(clean.labels == TARGET, -np.inf, centred @ third)
    poison = np.zeros(len(clean), bool)
    poison[np.argsort(-shows)[: len(clean) // 100]] = True
    labels = np.where(poison, TARGET, clean.labels)
    wave = (third * np.sqrt(len(third))).reshape(clean.images.shape[1:])

    def moved(images: Images, levels: float) -> Images:
        return np.clip(images + levels * wave, 0, 255).round().astype(np.uint8)

    data = image_set(np.array(clean.images), labels, clean.class_names, clean.ids)
    return StandIn(data, poison, {f"{levels} levels": partial(moved, levels=levels) for levels in (48, 64)})


def victim(data: ImageSet):
    """Return the model trained on `data` by the common recipe."""
    school = ClassifierConfig(spec=WORK.case().spec, recipe=WORK.cell.recipe, seed=Seed(SEED).child("victim"))
    return trained(data, school, CACHE)[0]


def rates(model, stand_in: StandIn) -> dict[str, float]:
    """Return CA, target recall, and attack success and robust_accuracy of each trigger, in per cent."""
    test = WORK.sets[1]
    said, others = classifier_logits(model, test.images).argmax(1), test.labels != TARGET
    out = {
        "accuracy": float(np.mean(said == test.labels)),
        "target_recall": float(np.mean(said[~others] == TARGET)),
    }
    for name, put in stand_in.triggers.items():
        answer = classifier_logits(model, put(np.asarray(test.images)[others])).argmax(1)
        out[f"attack_success {name}".strip()] = float(np.mean(answer == TARGET))
        out[f"robust_accuracy {name}".strip()] = float(np.mean(answer == test.labels[others]))
    return {name: round(100 * value, 2) for name, value in out.items()}


def cured(stand_in: StandIn, way: Way, folder: Path) -> dict[str, float]:
    """Return the rates after a cure, and what was flagged."""
    data, poison = stand_in.data, stand_in.poison
    WORK.guide.foresee(data)
    source = ImageSource.open((data.images, data.labels), classes=data.class_names)
    found = Defender(WORK.guide, folder, plan=way.plan).scan(source, model_size=data.images.shape[1:3]).found_
    if not way.honest:
        found = replace(found, split=replace(found.split, honest=None))
    plan = replace(way.plan, seed=way.seed)
    # The stages know a split by who is in it, and not by how its classes are weighed.
    done = cure(found, victim(data), WORK.case().spec, f"victim, {way.honest}", plan)
    flagged, trusted = found.split.triggered, found.split.clean
    if "activations" in found.stages:
        table = read_table(found.stages["activations"].path / "planted.parquet")
        flagged, trusted = (
            np.isin(np.array(found.data.ids), table["id"][table[name]].astype(str))
            for name in ("is_planted", "is_trusted")
        )
    counts = {
        "flagged": int(flagged.sum()),
        "right": int((flagged & poison).sum()),
        "trusted": int((trusted & poison).sum()),
        "poison": int(poison.sum()),
    }
    return {**rates(load(done.path / "model.safetensors", WORK.case().spec), stand_in), **counts}


def main() -> None:
    """Compute the ways that are missing and print all."""
    rows = json.loads(FILE.read_text()) if FILE.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for make in (blur, component):
            stand_in = make(WORK.sets[0])
            ways: dict[str, Callable[[], dict[str, float]]] = {
                "victim": lambda made=stand_in: rates(victim(made.data), made),
                "oracle": lambda made=stand_in: rates(victim(WORK.sets[0]), made),
            }
            run = Path(folder) / make.__name__
            # Only where so much is planted that a class has another size.
            tried = WAYS | (SIZES if make is blur else {}) | LOOKED_AT
            ways |= {name: partial(cured, stand_in, way, run) for name, way in tried.items()}
            for name, compute in ways.items():
                key = f"{make.__name__}, {name}"
                if key not in rows:
                    about = {"command": "python benchmarks/stand_ins.py", "seed": SEED, "machine": machine()}
                    rows[key] = {**compute(), **about, "commit": commit()}
                    FILE.write_text(json.dumps(rows, indent=1) + "\n")
                shown = {k: v for k, v in rows[key].items() if isinstance(v, int | float) and k != "seed"}
                print(key, shown, flush=True)


if __name__ == "__main__":
    main()
