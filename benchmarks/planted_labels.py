"""How often labels planted into one class are found, and how often none are there and some are called so.

    python benchmarks/label_only_poison.py        development rows -> results/ablation/planted-labels.json

Training rows 40,000-49,999 of CIFAR-10. Random flips to each class, the same of images that share something
to be seen (the highest along a random smooth pattern) or are of one other class, symmetric noise, smaller
draws and long tails of clean labels. A draw that is there is not made again.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from scipy.ndimage import zoom
from scipy.special import log_softmax

from clipguard.data import ImageSource
from clipguard.data.decode import read_images
from clipguard.detection.label_flow import (
    LabelFlowConfig,
    class_log_probs,
    label_only_poison,
    refitted_label_flow,
)
from clipguard.lab.benchmark.config import GuideChoice
from clipguard.lab.benchmark.guides import guide_of
from clipguard.lab.benchmark.machine import commit, machine
from clipguard.seeds import Seed
from clipguard.types import ImageSet
from works import CACHE, HERE, RESULTS, SHARED

FILE = RESULTS / "ablation" / "planted-labels.json"
DRAWS = 2
NOISE = LabelFlowConfig()


@dataclass(frozen=True)
class Draw:
    """Rows, the labels that they are given, and which of them are planted into which class."""

    name: str
    rows: np.ndarray
    labels: np.ndarray
    planted: np.ndarray
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
        seen = projections(data, draw)
        for target in range(k):
            for rate in (0.005, 0.01, 0.02, 0.05):
                yield flipped(data, f"{rate:.1%} at random", rate, target, draw.random(n), number)
            yield flipped(data, "1.0% alike", 0.01, target, seen, number)
            source = data.class_names[(target + 1 + draw.integers(k - 1)) % k]
            of_one = np.where(labels == data.class_names.index(source), draw.random(n), -1.0)
            yield flipped(data, "3.0% of one class", 0.03, target, of_one, number)


def projections(data: ImageSet, draw: np.random.Generator) -> np.ndarray:
    """Return how much of a random smooth pattern each image shows."""
    pattern = zoom(draw.normal(size=(4, 4, 3)), (8, 8, 1), order=1)
    return data.images.reshape(len(data), -1).astype(float) @ (pattern.ravel() / np.linalg.norm(pattern))


def flipped(data: ImageSet, name: str, rate: float, target: int, score: np.ndarray, number: int) -> Draw:
    """Return the samples of other classes with the highest scores relabelled as the target."""
    able = np.where(data.labels == target, -np.inf, score)
    bad = np.zeros(len(data), bool)
    bad[np.argsort(-able)[: round(rate * len(data))]] = True
    to = f"{name} to {data.class_names[target]}, {number}"
    return Draw(to, np.arange(len(data)), np.where(bad, target, data.labels), bad, target)


def judged(draw: Draw, embeddings: np.ndarray, beliefs: np.ndarray) -> dict[str, object]:
    """Return which classes are called fed, and how many of the flagged labels are planted."""
    everyone, embeddings, labels = np.ones(len(draw.rows), bool), embeddings[draw.rows], draw.labels
    k, disbelief = beliefs.shape[1], -beliefs[draw.rows, labels]
    odds = class_log_probs(embeddings, labels, k, ~everyone, NOISE, Seed(0))
    found = label_only_poison(disbelief, odds, labels, everyone, NOISE)
    if found.planted.any():
        found = refitted_label_flow(
            embeddings, disbelief, labels, k, everyone, ~everyone, found, NOISE, Seed(0)
        )
    flagged, doubted, _ = found
    return {
        "target": draw.target,
        "planted": int(draw.planted.sum()),
        "fed": np.unique(draw.labels[flagged | doubted]).tolist(),
        "flagged": int(flagged.sum()),
        "right": int((flagged & draw.planted).sum()),
        "doubted": int(doubted.sum()),
        "left": int((draw.planted & ~flagged & ~doubted).sum()),
    }


def main() -> None:
    """Make the draws that are missing, and print what they come to."""
    source = ImageSource.open(SHARED / "cifar10" / "train.parquet", rows=(40_000, 50_000))
    data = read_images(source, (32, 32))[0]
    guide = guide_of(GuideChoice(name="mini"), CACHE / "embeddings", HERE)
    embeddings = guide.clip.embed_images(list(data.images))
    told = guide.logits(embeddings, data.class_names)
    beliefs = log_softmax(told.scale * told.logits.astype(np.float64), axis=1)
    about = {"rule": asdict(NOISE), "command": "python benchmarks/label_only_poison.py", "machine": machine()}
    there = json.loads(FILE.read_text()) if FILE.exists() else {}
    done = there["draws"] if there.get("rule") == about["rule"] else {}
    for draw in draws(data):
        if draw.name not in done:
            done[draw.name] = judged(draw, embeddings, beliefs)
            FILE.write_text(json.dumps({**about, "commit": commit(), "draws": done}, indent=1) + "\n")
    kinds: dict[str, list[dict[str, object]]] = {}
    for name, row in done.items():
        kind = name.split(" to ")[0] if row["target"] is not None else name.rsplit(", ", 1)[0]
        kinds.setdefault(kind, []).append(row)
    for kind, rows in kinds.items():
        found = sum(row["target"] in row["fed"] for row in rows)
        false = sum(len(set(row["fed"]) - {row["target"]}) for row in rows)
        keys = ("right", "flagged", "planted", "doubted", "left")
        right, flagged, planted, doubted, left = (sum(row[key] for row in rows) for key in keys)
        print(
            f"{kind}: {len(rows)} draws, target found in {found}, other classes called fed: {false}; "
            f"flagged {flagged}, {right} right of {planted} planted; "
            f"doubted {doubted}, planted and left {left}"
        )


if __name__ == "__main__":
    main()
