"""A backdoored guide before and after cleaning: zero-shot accuracy, attack success, and what the check says.

    python tools/backdoored_guide.py cifar10/train.parquet guides/badnets-0 --epochs 4 --lr 3e-4 --stay 5 \
        --triggered 2
    python benchmarks/guide_cleaning.py cifar10/train.parquet guides/badnets-0 \
        benchmarks/results/guide-cleaning

Cleaned on rows 44,000 to 46,999, measured on rows 47,000 to 49,999, one seed. Each result is a JSON file that
is not computed again: `guide.json`, `METHOD-EPOCHS-RATE.json`, `check-clean.json`, `check-backdoored.json`.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from clipguard.clip.cleaning import Cleaning, FineTuning, called, cleaned
from clipguard.clip.zero_shot import MINI_TEMPLATES, ClipGuide
from clipguard.data import ImageSource
from clipguard.data.decode import common_size, prepared, read_images
from clipguard.lab.attacks import attack_named
from clipguard.lab.benchmark.machine import commit, machine
from clipguard.pipeline.guide_backdoor import CheckSettings, check_guide
from clipguard.runs import write_json
from clipguard.seeds import Seed
from clipguard.types import ImageSet, Preprocessing, image_set

CLEANING_ROWS, TEST_ROWS = (44_000, 47_000), (47_000, 50_000)


def rates(guide: ClipGuide, test: ImageSet, target: int) -> dict[str, float]:
    """Return accuracy, and the share of triggered images of other classes that are called the target."""
    attack, classes = attack_named("badnets", target=target), guide.class_embeddings(test.class_names)
    others = test.labels != target
    triggered = attack.trigger(test.pixels[others])
    assert triggered is not None

    def likeliest(images: np.ndarray) -> np.ndarray:
        return called(guide.clip, crops(guide, images), classes)

    return {
        "accuracy": float(np.mean(likeliest(test.pixels) == test.labels)),
        "attack_success": float(np.mean(likeliest(triggered) == target)),
    }


def crops(guide: ClipGuide, images: np.ndarray) -> np.ndarray:
    """Return images as the guide takes them."""
    return np.stack([prepared(image, guide.clip.preprocessing) for image in images])


def once(path: Path, compute: Callable[[], dict[str, Any]]) -> None:
    """Write what is computed, unless the file is there; print it in any case."""
    if not path.exists():
        began = time.process_time()
        value = compute()
        seconds = round(time.process_time() - began)
        write_json(path, {**value, "cpu_seconds": seconds, "commit": commit(), "machine": machine()})
    print(path.name, json.dumps(json.loads(path.read_text())), flush=True)


def checked(guide: ClipGuide, source: ImageSource, images: int) -> dict[str, Any]:
    check = check_guide(
        guide, None, source, CheckSettings(images=images), Seed(0).child("guide check"), lambda *step: None
    )
    return {
        "answer": check.answer,
        "reached": dict(zip(check.class_names, check.reached.round(3).tolist(), strict=True)),
        "deviations": dict(zip(check.class_names, check.deviations.round(2).tolist(), strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("guide", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--target", type=int, default=0)
    parser.add_argument("--methods", nargs="*", default=["cleanclip", "abd"])
    parser.add_argument("--epochs", type=int, default=FineTuning().epochs)
    parser.add_argument("--rate", type=float, default=FineTuning().lr)
    parser.add_argument("--images", type=int, default=3000, help="of the cleaning rows, the first ones")
    parser.add_argument("--tests", type=int, default=3000, help="of the test rows, the first ones")
    parser.add_argument("--check", action="store_true", help="run the check on the clean and the bad guide")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    bad = ClipGuide(f"local-dir:{chosen.guide}", templates=MINI_TEMPLATES)
    first, end = CLEANING_ROWS[0], CLEANING_ROWS[0] + chosen.images
    source = ImageSource.open(chosen.data, rows=(first, min(end, CLEANING_ROWS[1])))
    last = min(TEST_ROWS[0] + chosen.tests, TEST_ROWS[1])
    tests = ImageSource.open(chosen.data, rows=(TEST_ROWS[0], last))
    test = read_images(tests, Preprocessing(size=common_size(tests)))[0]
    once(
        chosen.out / "guide.json",
        lambda: {
            "tests": len(test),
            "mini": rates(ClipGuide("mini"), test, chosen.target),
            "backdoored": rates(bad, test, chosen.target),
        },
    )
    if chosen.check:
        for name, guide in (("clean", ClipGuide("mini")), ("backdoored", bad)):
            once(chosen.out / f"check-{name}.json", lambda guide=guide: checked(guide, source, 1000))
    data = read_images(source, bad.clip.preprocessing.geometry)[0]
    data = image_set(data.pixels, data.labels, data.class_names)
    for method in chosen.methods:
        settings = Cleaning(method=method, fine_tuning=FineTuning(epochs=chosen.epochs, lr=chosen.rate))

        def compute(settings: Cleaning = settings) -> dict[str, Any]:
            tuned = cleaned(bad, data, settings, Seed(0).child("guide clean"), lambda *step: None)
            after = rates(bad.with_network(tuned.network), test, chosen.target)
            return {
                **after,
                "tests": len(test),
                "losses": list(tuned.losses),
                "images": len(data),
                **asdict(settings),
            }

        once(chosen.out / f"{method}-{chosen.epochs}-{chosen.rate:g}.json", compute)


if __name__ == "__main__":
    main()
