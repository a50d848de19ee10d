"""How often label-only poison of one class is found, and how often clean data are called so.

    python benchmarks/label_only_poison.py     development rows -> results/ablation/label-only-poison.json

Training rows 40,000-49,999 of CIFAR-10: random flips to each class, flips of images that are alike (the
highest along a random smooth pattern) or of one other class, symmetric noise, smaller draws and long tails of
clean labels. Then, of these rows and of the development rows of CIFAR-100, disjoint blocks, near-duplicates,
noise and long tails without poison, also under a guide whose embeddings are half noise.
Label flow and label exchange are measured on each. A finished draw is kept.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.ndimage import zoom
from scipy.special import log_softmax

from clipguard.compute.threads import one_thread
from clipguard.data import ImageSource
from clipguard.data.decode import read_images
from clipguard.detection.certain_labels import certain_labels
from clipguard.detection.class_evidence import LABEL_ALPHA
from clipguard.detection.label_exchange import label_exchange
from clipguard.detection.label_flow import (
    LabelFlowConfig,
    LabelView,
    label_only_poison,
    refitted_label_flow,
)
from clipguard.detection.linear_probe import fitted_probe, scored_labels
from clipguard.lab.benchmark.config import GuideChoice
from clipguard.lab.benchmark.guides import guide_of
from clipguard.lab.benchmark.machine import commit, machine
from clipguard.pipeline.stages import versions
from clipguard.seeds import Seed
from clipguard.types import ImageSet, Preprocessing
from runners import CACHE, HERE, RESULTS, SHARED

FILE = RESULTS / "ablation" / "label-only-poison.json"
DRAWS = 2
HALF = 0.5
"""Share of noise in the embeddings of the degraded guide."""

CONFIG = LabelFlowConfig()


@dataclass(frozen=True)
class Draw:
    """Rows, the labels that they are given, and which of them are poison for which class."""

    name: str
    rows: np.ndarray
    labels: np.ndarray
    poison: np.ndarray
    target: int | None = None


def draws(data: ImageSet) -> Iterator[Draw]:
    """Yield every draw."""
    labels, n = data.labels, len(data)
    k, rows, none = len(data.class_names), np.arange(n), np.zeros(n, bool)
    yield Draw("as they are", rows, labels, none)
    for number in range(DRAWS):
        draw = np.random.default_rng(number)
        for size in (1000, 3000, 8000):
            some = np.sort(draw.choice(n, size, replace=False))
            yield Draw(f"{size:,} of them, {number}", some, labels[some], none[some])
        order = draw.permutation(k)
        sizes = (n / k * 50 ** -(np.arange(k) / (k - 1))).astype(int)
        few = (np.flatnonzero(labels == one)[:size] for one, size in zip(order, sizes, strict=True))
        tail = np.sort(np.concatenate(list(few)))
        yield Draw(f"long tail 50:1, {number}", tail, labels[tail], none[tail])
        for rate in (0.02, 0.05, 0.1, 0.2, 0.4):
            moved = np.where(draw.random(n) < rate, draw.integers(1, k, n), 0)
            yield Draw(f"symmetric noise of {rate:.0%}, {number}", rows, (labels + moved) % k, none)
        pattern = projections(data, draw)
        for target in range(k):
            for rate in (0.005, 0.01, 0.02, 0.05):
                yield flipped(data, f"{rate:.1%} at random", rate, target, draw.random(n), number)
            yield flipped(data, "1.0% alike", 0.01, target, pattern, number)
            source = data.class_names[(target + 1 + draw.integers(k - 1)) % k]
            of_one = np.where(labels == data.class_names.index(source), draw.random(n), -1.0)
            yield flipped(data, "3.0% of one class", 0.03, target, of_one, number)


def untouched(data: ImageSet) -> Iterator[Draw]:
    """Yield draws without targeted poison: disjoint blocks, near-duplicates, noise and long tails."""
    labels, n, k = data.labels, len(data), len(data.class_names)
    rows, none = np.arange(n), np.zeros(n, bool)
    yield Draw("as they are", rows, labels, none)
    for size in (1000, 3000):
        for first in range(0, n - size + 1, size):
            some = np.arange(first, first + size)
            yield Draw(f"block of {size:,}, {first}", some, labels[some], none[some])
    for number in range(DRAWS, 3 * DRAWS):
        draw = np.random.default_rng(number)
        copies = rows.copy()
        source, place = draw.choice(n, (2, n // 10), replace=False)
        copies[place] = source
        yield Draw(f"near-duplicates, {number}", copies, labels[copies], none)
        for rate in (0.05, 0.2, 0.4):
            moved = np.where(draw.random(n) < rate, draw.integers(1, k, n), 0)
            yield Draw(f"symmetric noise of {rate:.0%}, {number}", rows, (labels + moved) % k, none)
        sizes = np.maximum(n / k * 50 ** -(np.arange(k) / (k - 1)), 1).astype(int)
        few = (np.flatnonzero(labels == c)[:m] for c, m in zip(draw.permutation(k), sizes, strict=True))
        tail = np.sort(np.concatenate(list(few)))
        yield Draw(f"long tail 50:1, {number}", tail, labels[tail], none[tail])


def projections(data: ImageSet, draw: np.random.Generator) -> np.ndarray:
    """Return the projection of each image on a random smooth pattern."""
    pattern = zoom(draw.normal(size=(4, 4, 3)), (8, 8, 1), order=1)
    return data.images.reshape(len(data), -1).astype(float) @ (pattern.ravel() / np.linalg.norm(pattern))


def flipped(data: ImageSet, name: str, rate: float, target: int, score: np.ndarray, number: int) -> Draw:
    """Return the samples of other classes with the highest scores relabelled as the target."""
    scores = np.where(data.labels == target, -np.inf, score)
    poison = np.zeros(len(data), bool)
    poison[np.argsort(-scores)[: round(rate * len(data))]] = True
    name = f"{name} to {data.class_names[target]}, {number}"
    return Draw(name, np.arange(len(data)), np.where(poison, target, data.labels), poison, target)


def measured(draw: Draw, embeddings: np.ndarray, guide_log_probs: np.ndarray) -> dict[str, Any]:
    """Return what label flow and label exchange say of a draw."""
    embeddings, labels = embeddings[draw.rows], draw.labels
    everyone, k = np.ones(len(labels), bool), guide_log_probs.shape[1]
    fitted = fitted_probe(embeddings, labels, k, ~everyone, Seed(0))
    certain = certain_labels(embeddings, labels, everyone, fitted, Seed(0).child("recalibration"))
    exchange = label_exchange(certain, Seed(0).child("redraws"))
    one = int(exchange.p_value.argmin()) if draw.target is None else draw.target
    view = LabelView(
        labels=labels, num_classes=k, guide_nll=-guide_log_probs[draw.rows, labels], unexplained=everyone
    )
    flow = label_only_poison(view, scored_labels(fitted, embeddings, labels, np.zeros(k, bool)), CONFIG)
    if flow.flagged.any():
        flow = refitted_label_flow(embeddings, view, flow, CONFIG, Seed(0))
    flagged, excluded = flow.flagged, flow.excluded
    return {
        "target": draw.target,
        "poison": int(draw.poison.sum()),
        "suspected": np.unique(draw.labels[flagged | excluded]).tolist(),
        "flagged": int(flagged.sum()),
        "right": int((flagged & draw.poison).sum()),
        "excluded": int(excluded.sum()),
        "left": int((draw.poison & ~flagged & ~excluded).sum()),
        # Of the target class, or of the class with the smallest p-value where there is none.
        "p_value": float(exchange.p_value[one]),
        "p_value_of_others": float(np.delete(exchange.p_value, one).min()),
        "source": int(exchange.source[one]),
        "one_source": bool(exchange.one_source[one]),
        "strength": float(exchange.strength[one]),
        "wrong_labels": float(exchange.wrong_labels[one]),
        "noise": certain.noise,
    }


def main() -> None:
    """Make the missing draws and print a line a kind of draw."""
    command = "python benchmarks/label_only_poison.py"
    settings = {"config": asdict(CONFIG), "version": versions()["label_flow"]}
    about = {**settings, "command": command, "machine": machine()}
    earlier = json.loads(FILE.read_text()) if FILE.exists() else {}
    known = all(earlier.get(name) == value for name, value in settings.items())
    results = earlier["draws"] if known else {}
    FILE.parent.mkdir(parents=True, exist_ok=True)
    cifar10 = "cifar10/train.parquet", (40_000, 50_000)
    cifar100 = "cifar100-12k/development.parquet", (0, 6000)
    for prefix, where, kinds, degrade in (
        ("", cifar10, draws, 0.0),
        ("CIFAR-10, ", cifar10, untouched, 0.0),
        ("CIFAR-100, ", cifar100, untouched, 0.0),
        ("CIFAR-10, guide half noise, ", cifar10, untouched, HALF),
        ("CIFAR-100, guide half noise, ", cifar100, untouched, HALF),
    ):
        data = read_images(ImageSource.open(SHARED / where[0], rows=where[1]), Preprocessing(size=(32, 32)))[
            0
        ]
        guide = guide_of(GuideChoice(name="mini", degrade=degrade), CACHE / "embeddings", HERE)
        embeddings = guide.clip.embed_images(list(data.images))
        scores = guide.logits(embeddings, data.class_names)
        guide_log_probs = log_softmax(scores.scale * scores.logits[:].astype(np.float64), axis=1)
        for draw in kinds(data):
            if prefix + draw.name not in results:
                results[prefix + draw.name] = measured(draw, embeddings, guide_log_probs)
                FILE.write_text(json.dumps({**about, "commit": commit(), "draws": results}, indent=1) + "\n")
    show(results)


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print the sums of each kind of draw."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for name, row in results.items():
        kind = name.split(" to ")[0] if row["target"] is not None else name.rsplit(", ", 1)[0]
        kinds.setdefault(kind, []).append(row)
    for kind, rows in kinds.items():
        hits = sum(row["target"] in row["suspected"] for row in rows)
        others = sum(len(set(row["suspected"]) - {row["target"]}) for row in rows)
        keys = ("poison", "flagged", "right", "excluded", "left")
        sums = ", ".join(f"{key} {sum(row[key] for row in rows)}" for key in keys)
        print(f"{kind}: {len(rows)} draws, target suspected in {hits}, {others} other classes; {sums}")
        p_values = np.sort([row["p_value"] for row in rows])
        others = sum(row["p_value_of_others"] <= LABEL_ALPHA for row in rows)
        alarms = f"{(p_values <= LABEL_ALPHA).sum()} at most {LABEL_ALPHA}, other classes in {others}"
        print(f"    exchange: p-value {alarms}, smallest {p_values[:3].round(4).tolist()}")


if __name__ == "__main__":
    with one_thread():
        main()
