"""Draws of data sets whose truth is known, and the scores of a scan of each: what the verdict is measured on.

    python benchmarks/verdict_draws.py [PART OF A NAME]...

Development draws are CIFAR-10 training rows 40,000-49,999 and the development rows of CIFAR-100: thresholds
are chosen on them. The scores of each are kept in the cache, as one .npz file a draw. The draws of the
published table are those of `verdict_scans.py`.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import shift
from sklearn.datasets import load_digits

from adaptive_draws import ADAPTIVE
from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.device import CPU, computing_on
from clipguard.compute.threads import granted_threads, one_thread
from clipguard.data import ImageSource
from clipguard.data.decode import common_size, read_images
from clipguard.detection.label_exchange import LabelExchange
from clipguard.detection.one_way_labels import OneWayLabels
from clipguard.detection.sample_scores import SampleScores
from clipguard.lab.attacks import attack_named
from clipguard.lab.benchmark.config import GuideChoice
from clipguard.lab.benchmark.guides import guide_of
from clipguard.lab.ground_truth import PoisonTruth
from clipguard.pipeline.config import DefenseConfig
from clipguard.pipeline.sample_scoring import sample_scores
from clipguard.pipeline.stages import versions
from clipguard.seeds import Seed
from clipguard.types import ImageSet, Preprocessing, image_set
from runners import CACHE, HERE, SHARED

FILES = {
    "cifar10": "cifar10/train.parquet",
    "cifar100": "cifar100-12k/train.parquet",
    "cifar100-dev": "cifar100-12k/development.parquet",
    "gtsrb": "gtsrb-12k/train.parquet",
    "tiny": "tinyimagenet-12k/train.parquet",
    "imagenette": "imagenette-80/train.parquet",
    **{
        f"{name}-test": f"{folder}/test.parquet"
        for name, folder in (
            ("cifar10", "cifar10"),
            ("cifar100", "cifar100-12k"),
            ("gtsrb", "gtsrb-12k"),
            ("tiny", "tinyimagenet-12k"),
            ("imagenette", "imagenette-80"),
        )
    },
}


@dataclass(frozen=True, kw_only=True)
class Draw:
    """A data set with known truth.

    Attributes:
        data: key of `FILES`, or digits.
        rows: of the file, first and end.
        attack: its name; `none` leaves the data as they are.
        options: of the attack; `count` stands for the number of poisoned samples.
        condition: what is done to the data before: `as is`, `long tail`, `noise RATE`, `duplicates`, `ids`,
            or `guide SHARE`, a guide whose embeddings are that far noise.
        seed: of attack, condition and scan.
        fit_seed: of what the attack learns from the data first; None is `seed`. Draws of the same rows share
            one, since it takes up to ten minutes.
    """

    data: str
    rows: tuple[int, int]
    attack: str = "none"
    options: dict[str, Any] = field(default_factory=dict)
    condition: str = "as is"
    seed: int = 0
    fit_seed: int | None = None

    @property
    def name(self) -> str:
        """All that makes the draw, as a file's name."""
        options = "".join(f",{key}={value}" for key, value in self.options.items())
        rows = f"{self.rows[0]}-{self.rows[1]}"
        return f"{self.data}_{rows}_{self.condition}_{self.attack}{options}_s{self.seed}".replace(" ", "-")


CIFAR10 = ("cifar10", (40_000, 50_000))
CIFAR100 = ("cifar100-dev", (0, 6000))


def development() -> Iterator[Draw]:
    """Yield the draws that thresholds are chosen on."""
    blocks = [("cifar10", (start, start + 3000)) for start in (40_000, 43_000, 46_000)]
    blocks += [("cifar100-dev", (0, 3000)), ("cifar100-dev", (3000, 6000))]
    for data, rows in (CIFAR10, CIFAR100, *blocks):
        yield Draw(data=data, rows=rows, seed=500)
    for count in (200, 100, 50, 30):
        yield _poisoned(CIFAR10, "badnets", count, 1, 501)
        yield _poisoned(CIFAR10, "blended", count, 1, 501)
        yield _poisoned(CIFAR10, "sig", count, 3, 501)
    for condition in ("long tail", "noise 0.05", "noise 0.2", "noise 0.4", "duplicates", "ids", "guide 0.5"):
        for data, rows in (CIFAR10, CIFAR100):
            yield Draw(data=data, rows=rows, condition=condition, seed=502)
    for attack, count in (("badnets", 120), ("badnets", 60), ("blended", 120), ("blended", 60), ("sig", 30)):
        yield _poisoned(CIFAR100, attack, count, 7, 503)
    for attack, count in (("wanet", 500), ("flips-to-one", 100), ("flips-to-one", 300), ("adap-blend", 100)):
        yield _poisoned(CIFAR10, attack, count, 5, 504)


def _poisoned(where: tuple[str, tuple[int, int]], attack: str, count: int, target: int, seed: int) -> Draw:
    options = {"count": count, "target": target}
    return Draw(data=where[0], rows=where[1], attack=attack, options=options, seed=seed)


def read(draw: Draw) -> ImageSet:
    """Return the rows of a draw as they are in the file; digits come with scikit-learn."""
    if draw.data == "digits":
        digits = load_digits()
        grey = np.repeat((digits.images[slice(*draw.rows)] * 15.9).astype(np.uint8)[..., None], 3, axis=3)
        names = tuple(f"the digit {name}" for name in digits.target_names)
        labels = digits.target[slice(*draw.rows)].astype(np.int64)
        return image_set(grey.repeat(4, axis=1).repeat(4, axis=2), labels, names)
    source = ImageSource.open(SHARED / FILES[draw.data], rows=draw.rows)
    return read_images(source, Preprocessing(size=common_size(source)))[0]


def made(draw: Draw) -> tuple[ImageSet, PoisonTruth]:
    """Return the data set of a draw, and which of its samples are poisoned."""
    seed = Seed(draw.seed)
    data = conditioned(read(draw), draw.condition, seed.child("condition"))
    options = dict(draw.options)
    if draw.attack in CONTROLS:
        return CONTROLS[draw.attack](data, options, seed.child("attack").generator())
    if "count" in options:
        options["rate"] = options.pop("count") / len(data)
    attack = attack_named(draw.attack, **options)
    fit_seed = seed if draw.fit_seed is None else Seed(draw.fit_seed)
    fitted = attack.fit(data, fit_seed.child("fit"), CACHE / "attacks", lambda step, done, total: None)
    return fitted.poison(data, seed.child("attack"))


def one_class_to_another(
    data: ImageSet, options: dict[str, Any], draw: np.random.Generator
) -> tuple[ImageSet, PoisonTruth]:
    """Return the data with the target's label on so many samples of one class."""
    rows = draw.choice(np.flatnonzero(data.labels == options["source"]), options["count"], replace=False)
    labels = data.labels.copy()
    labels[rows] = options["target"]
    changed = image_set(data.pixels, labels, data.class_names, data.ids)
    return changed, _truth(data, rows, "one-class", options["target"])


def watermarked(
    data: ImageSet, options: dict[str, Any], draw: np.random.Generator
) -> tuple[ImageSet, PoisonTruth]:
    """Return the data with a mark on so many samples of one class, whose labels are right."""
    rows = draw.choice(np.flatnonzero(data.labels == options["target"]), options["count"], replace=False)
    images, side = data.pixels.copy(), data.pixels.shape[1] // 6
    mark = draw.integers(0, 2, (side, side, 3), dtype=np.uint8) * 255
    images[rows, -side - 1 : -1, 1 : side + 1] = mark
    changed = image_set(images, data.labels, data.class_names, data.ids)
    return changed, _truth(data, rows, "watermark", options["target"])


def _truth(data: ImageSet, rows: np.ndarray, attack: str, target: int) -> PoisonTruth:
    touched = np.zeros(len(data), dtype=bool)
    touched[rows] = True
    return PoisonTruth(
        poisoned=touched,
        cover=np.zeros(len(data), dtype=bool),
        original_labels=data.labels,
        attack=attack,
        target=target,
    )


CONTROLS = {"one-class": one_class_to_another, "watermark": watermarked, **ADAPTIVE}
"""What is no attack of `clipguard.lab`: by name, data and truth."""


def conditioned(data: ImageSet, condition: str, seed: Seed) -> ImageSet:
    """Return the data as a condition changes them."""
    kind, _, value = condition.partition(" ")
    draw = seed.generator()
    match kind:
        case "noise":
            k = len(data.class_names)
            moved = np.where(draw.random(len(data)) < float(value), draw.integers(1, k, len(data)), 0)
            return image_set(data.pixels, (data.labels + moved) % k, data.class_names, data.ids)
        case "long":
            return _long_tail(data, draw)
        case "duplicates":
            # A tenth of the samples are copies of others, a pixel aside and a little brighter.
            copies = draw.choice(len(data), (2, len(data) // 10), replace=False)
            images, labels = data.pixels.copy(), data.labels.copy()
            for source, place in copies.T:
                images[place] = shift(images[source].astype(np.int16) + 3, (0, 1, 0), mode="nearest").clip(
                    0, 255
                )
                labels[place] = labels[source]
            return image_set(images, labels, data.class_names, data.ids)
        case "ids":
            names = tuple(f"c{number:03d}" for number in draw.permutation(len(data.class_names)))
            return replace(data, class_names=names)
    return data


def _long_tail(data: ImageSet, draw: np.random.Generator) -> ImageSet:
    """Return classes of sizes that fall exponentially, in a random order, to a fiftieth of the largest."""
    k = len(data.class_names)
    largest, order = len(data) / k, draw.permutation(k)
    kept = []
    for place, label in enumerate(order):
        count = max(1, round(largest * 50 ** (-place / (k - 1))))
        kept.append(np.flatnonzero(data.labels == label)[:count])
    return data.take(np.sort(np.concatenate(kept)))


def guide_for(draw: Draw) -> ClipGuide:
    """Return the guide of a draw; it remembers embeddings."""
    kind, _, value = draw.condition.partition(" ")
    degrade = float(value) if kind == "guide" else 0.0
    return guide_of(GuideChoice(name="mini", degrade=degrade), CACHE / "embeddings", HERE)


def file_of(draw: Draw) -> Path:
    """Return where the scores of a draw are kept, under the versions of the stages that make them."""
    known = versions()
    stages = "-".join(f"{name[0]}{known[name]}" for name in ("early_model", "trigger_detector", "label_flow"))
    return CACHE / "verdict" / stages / f"{draw.name}.npz"


def scored(draw: Draw) -> None:
    """Write the scores of a draw unless they are there."""
    path = file_of(draw)
    if path.exists():
        return
    began = time.monotonic()
    data, truth = made(draw)
    guide = guide_for(draw)
    pixels = data.pixels
    vectors = [guide.clip.embed_images(pixels[first : first + 1024]) for first in range(0, len(data), 1024)]
    embeddings = np.concatenate(vectors)
    config = DefenseConfig(seed=draw.seed)
    embedded = time.monotonic()
    scores = sample_scores(data, guide.logits(embeddings, data.class_names), embeddings, config)
    seconds = time.monotonic() - embedded
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez_compressed(
        part,
        **plain(scores),
        poisoned=truth.poisoned,
        original_labels=truth.original_labels,
        embeddings=embeddings.astype(np.float16),
        seconds=seconds,
    )
    part.rename(path)
    print(f"{draw.name}: {embedded - began:.0f} s to make and embed, {seconds:.0f} s to score", flush=True)


TESTS: dict[str, Any] = {"exchange": LabelExchange, "one_way": OneWayLabels}
"""Tests of labels among the scores, by name."""


def plain(scores: SampleScores) -> dict[str, Any]:
    """Return scores as arrays by name; those of tests of labels begin with `exchange_` and `one_way_`."""
    values = asdict(scores)
    of_tests = {test: values.pop(test) for test in TESTS}
    return values | {f"{test}_{name}": value for test in TESTS for name, value in of_tests[test].items()}


def read_scores(path: Path) -> tuple[SampleScores, dict[str, np.ndarray]]:
    """Return the scores that a file holds, and all its arrays."""
    arrays = dict(np.load(path))
    tests: dict[str, Any] = {
        test: kind(**{one.name: arrays[f"{test}_{one.name}"] for one in fields(kind)})
        for test, kind in TESTS.items()
    }
    names = [one.name for one in fields(SampleScores) if one.name not in (*TESTS, "num_classes")]
    values = {name: arrays[name] for name in names}
    return SampleScores(**values, **tests, num_classes=int(arrays["num_classes"])), arrays


def main() -> None:
    """Score the draws of a list whose names hold all the words given."""
    for draw in development():
        if all(word in draw.name for word in sys.argv[1:]):
            with computing_on(CPU), granted_threads(None), one_thread():
                scored(draw)


if __name__ == "__main__":
    main()
