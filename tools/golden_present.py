"""The cases of `golden.py` by the present layout; `golden_case.py` has the base's."""

import importlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import golden_case as base

PRESENT = {
    "Defender": "pipeline.defender",
    "DefenseConfig": "pipeline.config",
    "ImageSource": "data",
    "ModelSpec": "models.spec",
    "Preprocessing": "types",
    "Recipe": "compute.training",
    "Seed": "seeds",
    "State": "types",
    "attack_named": "lab.attacks",
    "build": "models.spec",
    "cross_entropy": "compute.training",
    "demo_config": "lab.demo",
    "demo_guide": "lab.demo",
    "fit": "compute.training",
    "guide_from_name": "clip.zero_shot",
    "load": "models.spec",
    "poisoned_digits": "lab.demo",
    "ShardedArray": "runs",
    "read_array": "runs",
    "read_images": "data.decode",
}


def partition_values(part: Any, states: Any) -> dict[str, str]:
    """Return the hashes of a partition, one for each array that the base had."""
    sha = base.sha
    return {
        "clean": sha(part.clean),
        "flagged": sha(part.flagged),
        "excluded": sha(part.has(states.EXCLUDED)),
        "label only": sha(part.has(states.LABEL)),
        "suspicion": sha(part.suspicion),
        "quarantined": sha(np.array(part.quarantined, np.int64)),
        "clean share": sha(part.clean_share),
        "soft labels: rows": sha(part.soft_rows),
        "soft labels: values": sha(part.soft_labels),
    }


def scan_values(defender: Any, api: SimpleNamespace) -> dict[str, str]:
    """Return the hashes of all that a scan has computed, but for what has another form or rounding by now.

    The guide's scores are rounded once, so that its losses differ in the last bits; no probe's n x k scores
    are kept.
    """
    from clipguard.pipeline.summary import few_clean

    sha, scan = base.sha, defender.scan_
    stages, samples = defender.stages_, defender.samples_
    few = few_clean(scan)
    return {
        "images": sha(scan.data.pixels),
        "embeddings": sha(api.ShardedArray.of(stages["embeddings"].path / "img_emb")[:]),
        **{name: sha(getattr(scan.entropy, name)) for name in base.RANKS if name != "guide_nll"},
        "trigger scores": sha(samples["trigger_score"]),
        "ranking": sha(samples["id"][np.argsort(samples["rank"])]),
        **partition_values(scan.partition, api.State),
        "too few clean": sha(np.array(few, object)),
        **base.triggers(scan.triggers),
    }


def folds_of_the_base(n: int, folds: int, draw: np.random.Generator) -> np.ndarray:
    """Return folds as the base drew them; the present ones are scikit-learn's."""
    return draw.permutation(np.arange(n) % folds)


def as_in_the_base() -> None:
    """Undo what was changed on purpose: folds are drawn as the base drew them, and a handful is flagged."""
    users = ("compute.small_nets", "detection.trigger_detector", "detection.label_flow")
    for name in (*users, "detection.feature_separation"):
        importlib.import_module(f"clipguard.{name}").fold_numbers = folds_of_the_base
    importlib.import_module("clipguard.detection.trigger_detector").HANDFUL = 0


def values(case: str, data: Path, scratch: Path) -> dict[str, str]:
    """Return the hashes of a case."""
    api = base.names(PRESENT)
    as_in_the_base()
    source, guide, config = base.poisoned(case, data, api)
    # Since then, the detector refines itself up to three times; the base did so once.
    detector = replace(config.trigger_detector, refinements=1)
    config = replace(config, trigger_detector=detector)
    defender = api.Defender(guide, scratch / "run", config=config).scan(source)
    out = {f"scan: {name}": value for name, value in scan_values(defender, api).items()}
    images, _ = api.read_images(source, api.Preprocessing(size=(28, 28) if case == "digits" else (32, 32)))
    size = images.images.shape[1:3]
    spec = api.ModelSpec.sized(architecture="preactresnet18-8", num_classes=10, input_size=size)
    recipe = api.Recipe(epochs=3, lr=0.05, crop=0.0, flip=False)
    model, seed = api.build(spec, api.Seed(1).child("init")), api.Seed(1).child("fit")
    api.fit(model, images.images, np.arange(len(images)), api.cross_entropy(images.labels), recipe, seed)
    # The repair chooses its rate by now, and leaves samples out to measure on: nothing of it is the same.
    return out | {"victim": base.weights(model)}
