"""What one-way labels add: wrong labels from one class, found and not, and data without any.

    python benchmarks/one_class_labels.py     development rows -> results/ablation/one-class-labels.json

Random rows of CIFAR-10 40,000-49,999, some of one class labelled as another; then the draws without poison of
`label_only_poison.py`, and more long tails. Guide `mini`, and the same with embeddings that are half noise.
For each draw: the classes that label exchange, label flow and one-way labels suspect. A draw is made once for
each version of the stage `label_flow`.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.special import log_softmax

from clipguard.compute.threads import one_thread
from clipguard.data import ImageSource
from clipguard.data.decode import read_images
from clipguard.detection.class_evidence import LABEL_ALPHA, LEAST_EXCESS, ONE_WAY_ALPHA
from clipguard.detection.label_flow import LabelFlowConfig, LabelView, label_only_poison, refitted_label_flow
from clipguard.detection.probed_labels import probed_labels
from clipguard.lab.benchmark.config import GuideChoice
from clipguard.lab.benchmark.guides import guide_of
from clipguard.lab.benchmark.machine import commit, machine
from clipguard.pipeline.stages import versions
from clipguard.seeds import Seed
from clipguard.types import ImageSet, Preprocessing
from label_only_poison import HALF, Draw, untouched
from runners import CACHE, HERE, RESULTS, SHARED

FILE = RESULTS / "ablation" / "one-class-labels.json"
CONFIG = LabelFlowConfig()
SIZES = {3000: (45, 60, 90, 150), 10_000: (300,)}
DRAWS = {3000: 20, 10_000: 5}
TAILS = 24


def from_one_class(data: ImageSet) -> Iterator[Draw]:
    """Yield random rows in which so many samples of one class are labelled as another."""
    for size, counts in SIZES.items():
        for count in counts:
            for number in range(DRAWS[size]):
                draw = np.random.default_rng(1000 + number)
                rows = np.sort(draw.choice(len(data), size, replace=False))
                labels, target = data.labels[rows].copy(), number % 10
                of_source = np.flatnonzero(labels == (target + 1 + draw.integers(9)) % 10)
                poison = np.zeros(size, bool)
                poison[draw.choice(of_source, count, replace=False)] = True
                labels[poison] = target
                yield Draw(f"{count} of one class in {size:,}, {number}", rows, labels, poison, target)


def long_tails(data: ImageSet) -> Iterator[Draw]:
    """Yield class sizes that fall to a tenth, a twentieth and a fiftieth, in random order."""
    k, n = len(data.class_names), len(data)
    for number in range(TAILS):
        ratio = (10, 20, 50)[number % 3]
        order = np.random.default_rng(700 + number).permutation(k)
        sizes = np.maximum(n / k * ratio ** -(np.arange(k) / (k - 1)), 1).astype(int)
        few = (np.flatnonzero(data.labels == one)[:size] for one, size in zip(order, sizes, strict=True))
        rows = np.sort(np.concatenate(list(few)))
        yield Draw(f"long tail {ratio}:1, {number}", rows, data.labels[rows], np.zeros(len(rows), bool))


def measured(draw: Draw, embeddings: np.ndarray, guide_log_probs: np.ndarray) -> dict[str, Any]:
    """Return the classes that each rule suspects, and what is flagged with all of them."""
    embeddings, labels, k = embeddings[draw.rows], draw.labels, guide_log_probs.shape[1]
    probe, exchange, one_way = probed_labels(embeddings, labels, k, Seed(0))
    by_exchange = (exchange.p_value <= LABEL_ALPHA) & (exchange.excess >= LEAST_EXCESS * len(labels))
    by_one_way = one_way.p_value <= ONE_WAY_ALPHA
    view = LabelView(
        labels=labels,
        num_classes=k,
        guide_nll=-guide_log_probs[draw.rows, labels],
        unexplained=np.ones(len(labels), bool),
    )
    by_flow = np.unique(labels[label_only_poison(view, probe, CONFIG).flagged])
    flow = label_only_poison(view, probe, CONFIG, by_exchange | by_one_way)
    if flow.flagged.any():
        flow = refitted_label_flow(embeddings, view, flow, CONFIG, Seed(0))
    least = int(one_way.p_value.argmin())
    return {
        "target": draw.target,
        "poison": int(draw.poison.sum()),
        "exchange": np.flatnonzero(by_exchange).tolist(),
        "flow": by_flow.tolist(),
        "one_way": np.flatnonzero(by_one_way).tolist(),
        "one_way_p_value": float(one_way.p_value[least]),
        "one_way_pair": [least, int(one_way.source[least])],
        "one_way_share": float(one_way.share[least]),
        "flagged": int(flow.flagged.sum()),
        "right": int((flow.flagged & draw.poison).sum()),
    }


def main() -> None:
    """Make the missing draws and print a line a kind of draw."""
    about = {"command": "python benchmarks/one_class_labels.py", "machine": machine()}
    about["label_flow"] = str(versions()["label_flow"])
    earlier = json.loads(FILE.read_text()) if FILE.exists() else {}
    results = earlier["draws"] if earlier.get("label_flow") == about["label_flow"] else {}
    FILE.parent.mkdir(parents=True, exist_ok=True)
    cifar10 = "cifar10/train.parquet", (40_000, 50_000), (from_one_class, untouched, long_tails)
    cifar100 = "cifar100-12k/development.parquet", (0, 6000), (untouched,)
    for name, (file, rows, kinds) in {"CIFAR-10": cifar10, "CIFAR-100": cifar100}.items():
        data = read_images(ImageSource.open(SHARED / file, rows=rows), Preprocessing(size=(32, 32)))[0]
        for degrade, guide_name in ((0.0, "mini"), (HALF, "mini, half noise")):
            guide = guide_of(GuideChoice(name="mini", degrade=degrade), CACHE / "embeddings", HERE)
            embeddings = guide.clip.embed_images(list(data.images))
            scores = guide.logits(embeddings, data.class_names)
            guide_log_probs = log_softmax(scores.scale * scores.logits[:].astype(np.float64), axis=1)
            for draw in (draw for kind in kinds for draw in kind(data)):
                key = f"{name}, {guide_name}: {draw.name}"
                if key not in results:
                    results[key] = measured(draw, embeddings, guide_log_probs)
                    FILE.write_text(
                        json.dumps({**about, "commit": commit(), "draws": results}, indent=1) + "\n"
                    )
    show(results)


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print how often each rule suspects the target, and any class where there is none."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for name, row in results.items():
        kind = name if name.endswith("as they are") else name.rsplit(", ", 1)[0]
        kinds.setdefault(kind, []).append(row)
    for kind, rows in kinds.items():
        hits = {rule: 0 for rule in ("exchange", "flow", "one_way", "any")}
        others = 0
        for row in rows:
            suspected = {rule: set(row[rule]) for rule in ("exchange", "flow", "one_way")}
            suspected["any"] = set.union(*suspected.values())
            for rule, classes in suspected.items():
                hits[rule] += row["target"] in classes if row["target"] is not None else bool(classes)
            others += bool(suspected["any"] - {row["target"]}) if row["target"] is not None else 0
        flagged = [sum(row[key] for row in rows) for key in ("poison", "flagged", "right")]
        print(f"{kind}: {len(rows)} draws, {hits}, others {others}; poison, flagged, right: {flagged}")


if __name__ == "__main__":
    with one_thread():
        main()
