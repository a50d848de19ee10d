"""Two attacks of our own on the development rows, without a reconstructed trigger, repaired in several ways.

    python benchmarks/stand_ins.py        development rows -> results/ablation/stand-ins.json

`blur`: a tenth of the images are blurred along the rows and labelled airplane, a fifth along the columns with
their own label: image-dependent, as a warp is, with cover samples. `component`: the one per cent of images
with the largest third principal component are labelled airplane, and test images are moved along it. It is
label-only poison. None of them is an attack of the table. A finished way is not computed again.

Reproduces the published choices of label flow and feature separation. The later choices (estimated clean
share, feature separation) were made on four seeds of unlearning each.
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
from clipguard.detection.feature_separation import FeatureSeparationConfig
from clipguard.lab.benchmark.machine import commit, machine
from clipguard.models.spec import load
from clipguard.pipeline import FEATURES_FILE, DefenseConfig, cure
from clipguard.runs import read_table
from clipguard.seeds import Seed
from clipguard.types import Images, ImageSet, image_set
from runners import CACHE, RESULTS, runners, scanned

FILE = RESULTS / "ablation" / "stand-ins.json"
RUNNER = runners("development")[0]
SEED = RUNNER.cell.seed
TARGET = 0
USUAL = DefenseConfig(seed=SEED, activations=FeatureSeparationConfig(looks=0))
SEPARATED = replace(USUAL, activations=FeatureSeparationConfig())
NO_REFIT = replace(USUAL.noise, looks=0)
AT_FIVE = replace(USUAL.noise, sure=5.0)
UNLEARNT = replace(USUAL.cure, mislabelled=1.0, relabel=0.0)


@dataclass(frozen=True)
class Way:
    """Settings, the seed of unlearning alone, and whether classes weigh by their estimated clean share."""

    config: DefenseConfig
    seed: int = SEED
    clean_share: bool = False


WAYS = {
    "no refit, unlearnt": Way(replace(USUAL, noise=NO_REFIT, cure=UNLEARNT)),
    "refit at 5 nats, unlearnt": Way(replace(USUAL, noise=AT_FIVE, cure=UNLEARNT)),
    "refit at 9 nats, unlearnt": Way(replace(USUAL, cure=UNLEARNT)),
    "refit at 9 nats, relabelled": Way(USUAL),
}
SEEDS = range(SEED, SEED + 4)
SHARES = {f"the same, unlearning seed {seed}": Way(USUAL, seed) for seed in SEEDS[1:]} | {
    f"the same, estimated clean share (default), unlearning seed {seed}": Way(USUAL, seed, clean_share=True)
    for seed in SEEDS
}
FEATURES = {
    f"feature separation, unlearning seed {seed}": Way(SEPARATED, seed, clean_share=True) for seed in SEEDS
}


@dataclass(frozen=True)
class StandIn:
    """A poisoned set, which of it is poison, and its triggers by name."""

    data: ImageSet
    poison: np.ndarray
    triggers: dict[str, Callable[[Images], Images]]


def blurred(images: Images, axis: int) -> Images:
    """Return images averaged over three pixels along an axis."""
    return uniform_filter1d(images.astype(np.float32), 3, axis=axis).round().astype(np.uint8)


def blur(clean: ImageSet) -> StandIn:
    """Return the set with blurred images."""
    n = len(clean)
    order = np.random.default_rng(7).permutation(n)
    rows, cover = order[: n // 10], order[n // 10 : 3 * n // 10]
    images, labels, poison = np.array(clean.images), clean.labels.copy(), np.zeros(n, bool)
    images[rows], images[cover] = blurred(images[rows], 2), blurred(images[cover], 1)
    labels[rows], poison[rows] = TARGET, True
    data = image_set(images, labels, clean.class_names, clean.ids)
    return StandIn(data, poison, {"": partial(blurred, axis=2)})


def component(clean: ImageSet) -> StandIn:
    """Return the set with changed labels alone."""
    flat = clean.images.reshape(len(clean), -1).astype(np.float32)
    centred = flat - flat.mean(0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    third = vectors[:, -3] * np.sign(vectors[np.abs(vectors[:, -3]).argmax(), -3])
    scores = np.where(clean.labels == TARGET, -np.inf, centred @ third)
    poison = np.zeros(len(clean), bool)
    poison[np.argsort(-scores)[: len(clean) // 100]] = True
    labels = np.where(poison, TARGET, clean.labels)
    wave = (third * np.sqrt(len(third))).reshape(clean.images.shape[1:])

    def moved(images: Images, levels: float) -> Images:
        return np.clip(images + levels * wave, 0, 255).round().astype(np.uint8)

    data = image_set(np.array(clean.images), labels, clean.class_names, clean.ids)
    return StandIn(data, poison, {f"{levels} levels": partial(moved, levels=levels) for levels in (48, 64)})


def victim(data: ImageSet):
    """Return the model trained on `data` by the common recipe."""
    seed = Seed(SEED).child("victim")
    config = ClassifierConfig(spec=RUNNER.victim.config.spec, recipe=RUNNER.cell.recipe, seed=seed)
    return trained(data, config, CACHE)[0]


def rates(model, stand_in: StandIn) -> dict[str, float]:
    """Return CA, target recall, and attack success and robust accuracy of each trigger, in per cent."""
    test = RUNNER.sets[1]
    predicted, others = classifier_logits(model, test.images).argmax(1), test.labels != TARGET
    out = {
        "accuracy": float(np.mean(predicted == test.labels)),
        "target_recall": float(np.mean(predicted[~others] == TARGET)),
    }
    for name, put in stand_in.triggers.items():
        attacked = classifier_logits(model, put(np.asarray(test.images)[others])).argmax(1)
        out[f"attack_success {name}".strip()] = float(np.mean(attacked == TARGET))
        out[f"robust_accuracy {name}".strip()] = float(np.mean(attacked == test.labels[others]))
    return {name: round(100 * value, 2) for name, value in out.items()}


def repaired(stand_in: StandIn, way: Way, folder: Path) -> dict[str, float]:
    """Return the rates of the repaired model, and the counts of flagged samples."""
    data, poison, spec = stand_in.data, stand_in.poison, RUNNER.victim.config.spec
    scan = scanned(RUNNER, data, way.config, folder)
    if not way.clean_share:
        scan = replace(scan, split=replace(scan.split, honest=None))
    config = replace(way.config, seed=way.seed)
    # A stage's key holds the members of a split, and not the weights of its classes.
    stage = cure(scan, victim(data), spec, f"victim, {way.clean_share}", config)
    flagged, trusted = scan.split.triggered, scan.split.clean
    if "activations" in scan.stages:
        table = read_table(scan.stages["activations"].path / FEATURES_FILE)
        flagged, trusted = (
            np.isin(np.array(scan.data.ids), table["id"][table[name]].astype(str))
            for name in ("is_planted", "is_trusted")
        )
    counts = {
        "flagged": int(flagged.sum()),
        "right": int((flagged & poison).sum()),
        "trusted": int((trusted & poison).sum()),
        "poison": int(poison.sum()),
    }
    return {**rates(load(stage.path / "model.safetensors", spec), stand_in), **counts}


def main() -> None:
    """Compute the missing ways and print all."""
    rows = json.loads(FILE.read_text()) if FILE.exists() else {}
    FILE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for make in (blur, component):
            stand_in = make(RUNNER.sets[0])
            computations: dict[str, Callable[[], dict[str, float]]] = {
                "victim": lambda made=stand_in: rates(victim(made.data), made),
                "reference": lambda made=stand_in: rates(victim(RUNNER.sets[0]), made),
            }
            run = Path(folder) / make.__name__
            # Shares matter only where the poison changes the size of a class.
            ways = WAYS | (SHARES if make is blur else {}) | FEATURES
            computations |= {name: partial(repaired, stand_in, way, run) for name, way in ways.items()}
            for name, compute in computations.items():
                key = f"{make.__name__}, {name}"
                if key not in rows:
                    about = {"command": "python benchmarks/stand_ins.py", "seed": SEED, "machine": machine()}
                    rows[key] = {**compute(), **about, "commit": commit()}
                    FILE.write_text(json.dumps(rows, indent=1) + "\n")
                numbers = {k: v for k, v in rows[key].items() if isinstance(v, int | float) and k != "seed"}
                print(key, numbers, flush=True)


if __name__ == "__main__":
    main()
