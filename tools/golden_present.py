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
    """Return the hashes of all that a scan has computed."""
    from clipguard.pipeline.summary import few_clean

    sha, scan = base.sha, defender.scan_
    stages, samples = defender.stages_, defender.samples_
    few = few_clean(scan)
    return {
        "images": sha(scan.data.images),
        "embeddings": sha(api.read_array(stages["read"].path / "embeddings.npy")),
        "guide's logits": sha(scan.guide.logits[:]),
        **{name: sha(getattr(scan.entropy, name)) for name in base.RANKS},
        "trigger scores": sha(samples["trigger_score"]),
        "log odds of labels": sha(api.read_array(stages["label_flow"].path / "log_probs.npy")),
        "ranking": sha(samples["id"][np.argsort(samples["rank"])]),
        **partition_values(scan.partition, api.State),
        "too few clean": sha(np.array(few, object)),
        **base.triggers(scan.triggers),
    }


def repair_values(defender: Any, api: SimpleNamespace) -> dict[str, str]:
    """Return the hashes of what only a repair computes."""
    sha, history = base.sha, defender.history_
    out = {
        "repaired model": base.weights(defender.model_),
        "loss": sha(np.array(history["loss"])),
        "sizes": sha(np.array([history["clean"], history["flagged"]])),
    }
    if "feature_separation" in defender.stages_:
        folder = defender.stages_["feature_separation"].path
        state = api.read_array(folder / "state.npy")
        flagged = np.isin(state, (api.State.TRIGGER, api.State.LABEL))
        of = {"clean": state == api.State.CLEAN, "triggered": flagged, "doubted": state == api.State.EXCLUDED}
        out |= {f"by the model's features: {name}": sha(mask) for name, mask in of.items()}
        out["by the model's features: honest"] = sha(api.read_array(folder / "clean_share.npy"))
    return out


def folds_of_the_base(n: int, folds: int, draw: np.random.Generator) -> np.ndarray:
    """Return folds as the base drew them; the present ones are scikit-learn's."""
    return draw.permutation(np.arange(n) % folds)


def as_in_the_base() -> None:
    """Undo what was changed on purpose: folds are drawn as the base drew them, and a handful is flagged."""
    users = ("compute.small_nets", "detection.trigger_detector", "detection.label_flow")
    for name in (*users, "detection.feature_separation"):
        importlib.import_module(f"clipguard.{name}").fold_numbers = folds_of_the_base
    importlib.import_module("clipguard.detection.trigger_detector").HANDFUL = 0


def values(case: str, data: Path, victim: Path, scratch: Path) -> dict[str, str]:
    """Return the hashes of a case; the victim to repair is the one that the base has trained."""
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
    out["victim"] = base.weights(model)
    defender = api.Defender(guide, scratch / "run", config=config).fit(source, model=victim)
    return out | {f"defend: {name}": value for name, value in repair_values(defender, api).items()}
