"""One case of `golden.py`, in a process of its own: prints the hashes of its values as JSON.

Works with the layout of commit 07296d3 and with the present one, whichever `clipguard` is imported.
"""

import hashlib
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

NEW = importlib.util.find_spec("clipguard.data") is not None
ROWS = (40_000, 42_000)
"""Of CIFAR-10's training set: rows on which no figure of a table rests."""
RATES = {"cifar-badnets": 0.05, "cifar-flips": 0.1}
ATTACKS = {"cifar-none": "none", "cifar-badnets": "badnets", "cifar-flips": "flips-to-one"}


OLD = {
    "Defender": "defender",
    "ImageSource": "sources",
    "ModelSpec": "models",
    "DefenseConfig": "pipeline:Plan",
    "Recipe": "training",
    "Schooling": "victims",
    "Seed": "seeds",
    "attack_named": "attacks",
    "demo_guide": "demo",
    "demo_config": "demo:demo_plan",
    "guide_from_name": "guide",
    "poisoned_digits": "demo",
    "read_array": "store",
    "read_images": "decode",
    "save": "models",
    "trained": "victims",
}
"""What a case needs of the base, and the module that has it."""


def names(modules: dict[str, str]) -> SimpleNamespace:
    """Return the named things, imported."""
    found = SimpleNamespace()
    for name, where in modules.items():
        module, _, other = where.partition(":")
        setattr(found, name, getattr(importlib.import_module(f"clipguard.{module}"), other or name))
    return found


def sha(array: Any) -> str:
    """Return the hash of an array's type, shape and bytes."""
    values = np.ascontiguousarray(array)
    if values.dtype.kind in "OU":
        return hashlib.sha256("\n".join(map(str, values.ravel())).encode()).hexdigest()
    return hashlib.sha256(f"{values.dtype} {values.shape} ".encode() + values.tobytes()).hexdigest()


def weights(model: Any) -> str:
    """Return the hash of a network's weights."""
    state = sorted(model.network.state_dict().items())
    return hashlib.sha256(
        "".join(name + sha(value.cpu().numpy()) for name, value in state).encode()
    ).hexdigest()


def sparse(dense: np.ndarray | None, n: int, k: int) -> dict[str, str]:
    """Return the hashes of the rows that are not zero, and of their values."""
    dense = np.zeros((n, k), np.float32) if dense is None else dense
    rows = np.flatnonzero(dense.any(1))
    return {"soft labels: rows": sha(rows), "soft labels: values": sha(dense[rows])}


def old_partition(part: Any, label_only: np.ndarray, k: int) -> dict[str, str]:
    """Return the hashes of a partition of the base."""
    n = len(part.clean)
    honest = np.ones(k) if part.honest is None else part.honest
    return {
        "clean": sha(part.clean),
        "flagged": sha(part.triggered),
        "excluded": sha(~part.admissible & ~part.triggered),
        "label only": sha(label_only),
        "suspicion": sha(part.suspicion),
        "quarantined": sha(np.array(part.closed, np.int64)),
        "too few clean": sha(np.array(part.starved, object)),
        "clean share": sha(honest),
        **sparse(part.shown, n, k),
    }


def old_values(defender: Any, api: SimpleNamespace) -> dict[str, str]:
    """Return the hashes of all that a scan of the base has computed."""
    found = defender.found_
    stages, k = found.stages, len(found.data.class_names)
    samples = defender.samples_
    return {
        "images": sha(found.data.images),
        "embeddings": sha(api.read_array(stages["read"].path / "embeddings.npy")),
        "guide's logits": sha(found.guide.logits),
        **{name: sha(getattr(found.entropy, name.replace("early", "suspect"))) for name in RANKS},
        "trigger scores": sha(samples["trigger_score"]),
        "log odds of labels": sha(api.read_array(stages["labels"].path / "odds.npy")),
        "ranking": sha(samples["id"][np.argsort(samples["rank"])]),
        **old_partition(found.split, found.mislabelled, k),
        **triggers(defender.triggers_),
    }


RANKS = ("guide_nll", "early_nll", "guide_rank", "early_rank")


def triggers(found: Any) -> dict[str, str]:
    """Return the hash of the reconstructed triggers."""
    parts = [sha(one.scale) + sha(one.shift) + str(one.label) for one in found]
    return {"triggers": hashlib.sha256("".join(parts).encode()).hexdigest()}


def old_repair(defender: Any, api: SimpleNamespace) -> dict[str, str]:
    """Return the hashes of what only a repair computes."""
    out = {
        "repaired model": weights(defender.model_),
        "loss": sha(np.array(defender.history_["loss"])),
        "sizes": sha(np.array([defender.history_["clean"], defender.history_["triggered"]])),
    }
    if "activations" in defender.stages_:
        folder = defender.stages_["activations"].path
        for name in ("clean", "triggered", "doubted", "honest"):
            out[f"by the model's features: {name}"] = sha(api.read_array(folder / f"{name}.npy"))
    return out


def poisoned(case: str, data: Path, api: SimpleNamespace) -> tuple[Any, Any, Any]:
    """Return the source, the guide and the plan of a case."""
    if case == "digits":
        return api.poisoned_digits(0).source, api.demo_guide(), api.demo_config(0)
    source = api.ImageSource.open(data, rows=ROWS)
    size = api.Preprocessing(size=(32, 32)) if NEW else (32, 32)
    clean, _ = api.read_images(source, size)
    attack = api.attack_named(ATTACKS[case], rate=RATES.get(case, 0.05))
    changed, _ = attack.poison(clean, api.Seed(0).child("golden"))
    changed_source = api.ImageSource.open((changed.images, changed.labels), classes=changed.class_names)
    return changed_source, api.guide_from_name("mini"), api.DefenseConfig()


def main() -> None:
    """Compute the case that the arguments name."""
    case, data, victim, scratch = sys.argv[1], *map(Path, sys.argv[2:])
    if NEW:
        import golden_present as present

        values = present.values(case, data, scratch)
    else:
        values = old_case(case, data, victim, scratch)
    print(json.dumps(values))


def old_case(case: str, data: Path, victim: Path, scratch: Path) -> dict[str, str]:
    """Return the hashes of a case, by the code of the base; writes the victim's weights to `victim`."""
    api = names(OLD)
    source, guide, plan = poisoned(case, data, api)
    found = old_values(api.Defender(guide, scratch / "scan", plan=plan).scan(source), api)
    out = {f"scan: {name}": value for name, value in found.items()}
    images, _ = api.read_images(source, (28, 28) if case == "digits" else (32, 32))
    size = images.images.shape[1:3]
    spec = api.ModelSpec(architecture="preactresnet18-8", num_classes=10, input_size=size)
    recipe = api.Recipe(epochs=3, lr=0.05, crop=0.0, flip=False)
    model, _ = api.trained(images, api.Schooling(spec=spec, recipe=recipe, seed=api.Seed(1)), scratch)
    api.save(model, spec, victim)
    out["victim"] = weights(model)
    defender = api.Defender(guide, scratch / "scan", plan=plan).fit(source, model=victim)
    return out | {f"defend: {name}": value for name, value in old_repair(defender, api).items()}


if __name__ == "__main__":
    main()
