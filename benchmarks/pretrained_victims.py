"""How well a strong model, as people have them, is repaired: accuracy and attack success before and after.

    python benchmarks/pretrained_victims.py tf_efficientnet_lite1 --size 80 --weights FILE.safetensors
    python benchmarks/pretrained_victims.py vit_tiny_patch16_224 --size 224 --rows 0:3000 --epochs 8

Data (Imagenette at 80 pixels) are poisoned, by BadNets at 5 % if nothing else is given. The net learns them
by AdamW, from the weights of `--weights` if given, as `pretrained_weights.py` makes them. A reference learns
the same samples but for the poisoned ones. Then the victim is repaired as `clipguard defend --model` does it,
with all defaults. Every step is kept, and the same command goes on from there: FOLDER/NAME.json has the rates
of each model, and FOLDER/NAME all else.
"""

import argparse
import hashlib
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from clipguard.clip.zero_shot import guide_from_name
from clipguard.compute.inference import classifier_logits
from clipguard.compute.training import Recipe, cross_entropy, fit
from clipguard.data import ImageSource
from clipguard.data.decode import common_size, read_images
from clipguard.lab.attacks import attack_named
from clipguard.lab.attacks import triggered as with_trigger
from clipguard.lab.benchmark.machine import commit, machine
from clipguard.lab.evaluation import evaluate
from clipguard.models.preprocessing import as_they_are, timm_preprocessing
from clipguard.models.pretrained import take_body
from clipguard.models.spec import ModelSpec, Normalized, build, load, save
from clipguard.pipeline.defender import Defender
from clipguard.runs import read_json
from clipguard.runs.summary import Rates
from clipguard.seeds import Seed
from clipguard.types import ImageSet, Preprocessing
from runners import RESULTS, SHARED

TARGET = 0


def main() -> None:
    """Make, repair and measure one victim."""
    options = _options()
    rows = options.rows.replace(":", "-")
    name = f"{options.net}_{options.size}_{options.data}_{rows}_s{options.seed}_{_digest(options)}"
    folder = options.out / name
    folder.mkdir(parents=True, exist_ok=True)
    seed = Seed(options.seed)
    train, test = (_read(options, part) for part in ("train", "test"))
    attack = attack_named(options.attack, rate=options.poison, target=TARGET)
    poisoned, truth = attack.poison(train, seed.child("attack"))
    triggered = replace(test, images=with_trigger(attack, test.pixels))
    spec = ModelSpec(
        architecture=options.net, num_classes=len(train.class_names), preprocessing=_preprocessing(options)
    )
    tests = tuple(_as_the_net_takes(some, spec.preprocessing) for some in (test, triggered))
    results: dict[str, Any] = {"options": {key: str(value) for key, value in vars(options).items()}}
    for kind, rows_of in (("victim", np.arange(len(train))), ("reference", np.flatnonzero(~truth.poisoned))):
        began = time.monotonic()
        model = _trained(options, spec, poisoned.take(rows_of), folder / f"{kind}.safetensors", seed)
        seconds = time.monotonic() - began
        results[kind] = {**_rates(model, *tests), "seconds": round(seconds, 1)}
        print(kind, results[kind], flush=True)
    began = time.monotonic()
    defender = Defender(guide_from_name("mini"), folder / "run", progress=_quiet)
    source = ImageSource.open((poisoned.pixels, poisoned.labels), classes=poisoned.class_names)
    defender.fit(source, model=folder / "victim.safetensors")
    results["repaired"] = {**_rates(defender.model_, *tests), "seconds": round(time.monotonic() - began, 1)}
    results["scan"] = _scan(defender, truth.poisoned)
    noted = defender.stages_["unlearning"].path / "repair.json"
    results["repair"] = read_json(noted) if noted.exists() else None
    results |= {"warnings": defender.warnings_, **_about(options, spec)}
    options.out.joinpath(f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    print("repaired", results["repaired"], results["repair"], flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Repair a strong model that BadNets has poisoned.")
    parser.add_argument("net", help="a timm name")
    parser.add_argument("--size", type=int, default=80, help="pixels a side that the net takes")
    parser.add_argument("--data", default="imagenette-80", help="folder of shared data")
    parser.add_argument("--rows", default="0:9469", help="training rows")
    parser.add_argument("--test", default="test", help="the file with the test rows, without its ending")
    parser.add_argument("--test-rows", default="0:3925")
    parser.add_argument("--attack", default="badnets")
    parser.add_argument("--poison", type=float, default=0.05, help="share of the samples")
    parser.add_argument("--classes", type=int, help="keep the first so many classes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=1e-3, help="of AdamW, for victim and reference")
    parser.add_argument("--weights", type=Path, help="ImageNet weights of the same net (safetensors)")
    parser.add_argument("--out", type=Path, default=RESULTS / "pretrained")
    return parser.parse_args()


def _digest(options: argparse.Namespace) -> str:
    """Return a short name of all that a victim is made from: another rate or attack makes another one."""
    given = {key: str(value) for key, value in vars(options).items() if key not in ("out", "weights")}
    given["weights"] = "" if options.weights is None else _sha256(options.weights)
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:8]


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _about(options: argparse.Namespace, spec: ModelSpec) -> dict[str, Any]:
    digest = None if options.weights is None else _sha256(options.weights)
    return {"spec": asdict(spec), "weights_sha256": digest, "commit": commit(), "machine": machine()}


def _quiet(step: str, done: int, total: int) -> None:
    """Drop progress that nobody reads."""


def _read(options: argparse.Namespace, part: str) -> ImageSet:
    file, text = (options.test, options.test_rows) if part == "test" else ("train", options.rows)
    first, end = map(int, text.split(":"))
    source = ImageSource.open(SHARED / options.data / f"{file}.parquet", rows=(first, end))
    height, width = common_size(source)
    # The trigger has so many pixels of what the net is given: shrunk with a larger image, it would fade.
    size = min(height, options.size), min(width, options.size)
    data = read_images(source, Preprocessing(size=size))[0]
    if options.classes is None:
        return data
    few = data.take(np.flatnonzero(data.labels < options.classes))
    return replace(few, class_names=few.class_names[: options.classes])


def _preprocessing(options: argparse.Namespace) -> Preprocessing:
    """Return timm's preprocessing of the net at another size, uncropped: a crop would cut the trigger off."""
    known, size = timm_preprocessing(options.net), (options.size, options.size)
    return Preprocessing(size=size) if known is None else as_they_are(replace(known, size=size))


def _as_the_net_takes(data: ImageSet, preprocessing: Preprocessing) -> ImageSet:
    source = ImageSource.open((data.pixels, data.labels), classes=data.class_names)
    return read_images(source, preprocessing)[0]


def _trained(
    options: argparse.Namespace, spec: ModelSpec, data: ImageSet, path: Path, seed: Seed
) -> Normalized:
    """Return the net after it has learned the data, read back if it is there."""
    if not path.exists():
        model = build(spec, seed.child("init"))
        if options.weights is not None:
            take_body(model, options.weights, seed.child("head"))
        seen = _as_the_net_takes(data, spec.preprocessing)
        recipe = Recipe(
            epochs=options.epochs,
            batch_size=64,
            optimizer="adamw",
            lr=options.rate,
            weight_decay=0.01,
            warmup=0.1,
            crop=0.0,
            flip=False,
        )
        loss, note = cross_entropy(seen.labels.copy()), path.with_suffix(".checkpoint")
        fit(model, seen.images, np.arange(len(seen)), loss, recipe, seed.child("fit"), None, note)
        save(model, spec, path, data.class_names)
        note.unlink(missing_ok=True)
    return load(path, spec)


def _rates(model: Normalized, clean: ImageSet, triggered: ImageSet) -> dict[str, Any]:
    logits = [classifier_logits(model, some.images) for some in (clean, triggered)]
    targets = np.full(len(clean), TARGET)
    rates: Rates = evaluate(logits[0], logits[1], clean.labels, targets, "the test rows")
    return {
        name: None if getattr(rates, name) is None else round(100 * getattr(rates, name), 2)
        for name in ("accuracy", "attack_success", "robust_accuracy", "target_recall")
    }


def _scan(defender: Defender, poisoned: np.ndarray) -> dict[str, int]:
    flagged = defender.partition_.flagged
    return {
        "poisoned": int(poisoned.sum()),
        "flagged": int(flagged.sum()),
        "poisoned_and_flagged": int((flagged & poisoned).sum()),
        "poisoned_and_clean": int((defender.partition_.clean & poisoned).sum()),
    }


if __name__ == "__main__":
    main()
