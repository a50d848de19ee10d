"""A case of tiny images whose victim has learned the trigger, as detectors are given it."""

from pathlib import Path

import numpy as np

from clipguard.compute.classifiers import ClassifierConfig, cached_classifier
from clipguard.compute.training import Recipe
from clipguard.defenses import Case
from clipguard.models.spec import ModelSpec
from clipguard.seeds import Seed
from tiny_runs import CONFIG, GUIDE, poisoned_set

RECIPE = Recipe(epochs=8, lr=0.05, batch_size=16, crop=0.0, flip=False)


def tiny_case(folder: Path, architecture: str = "shallow-8") -> tuple[Case, np.ndarray]:
    """Return a case of 240 images, and which of them are poisoned."""
    data, poisoned = poisoned_set()
    spec = ModelSpec.sized(architecture=architecture, num_classes=3, input_size=(16, 16))
    config = ClassifierConfig(spec=spec, recipe=RECIPE, seed=Seed(CONFIG.seed).child("victim"))
    case = Case(
        data=data,
        train_victim=lambda: cached_classifier(config, data, folder)[0],
        train_on=lambda keep: cached_classifier(config, data, folder, keep),
        spec=spec,
        recipe=RECIPE,
        guide=GUIDE,
        seed=CONFIG.seed,
        run_dir=folder / "work",
        clean=poisoned_set(60, share=0, seed=9)[0],
    )
    return case, poisoned
