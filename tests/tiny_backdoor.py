"""A case of tiny images whose victim has a backdoor, with clean samples beside it, in some seconds."""

import copy
from pathlib import Path

import numpy as np
import pytest

from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.classifiers import ClassifierConfig, train_classifier
from clipguard.compute.inference import classifier_logits
from clipguard.compute.recipes import Recipe
from clipguard.defenses import Case
from clipguard.models.spec import ModelSpec, Normalized
from clipguard.seeds import Seed
from tiny_runs import add_trigger, poisoned_set

RECIPE = Recipe(epochs=3, lr=0.05, batch_size=32, crop=0.0, flip=False)
TEST, _ = poisoned_set(300, share=0, seed=9)
OTHERS = TEST.take(np.flatnonzero(TEST.labels != 0))


def backdoored(folder: Path, architecture: str = "shallow-8") -> Case:
    """Return a case in which the white corner leads to class 0."""
    data, _ = poisoned_set(1000, share=0.1, seed=3)
    given, _ = poisoned_set(500, share=0, seed=4)
    spec = ModelSpec.sized(architecture=architecture, num_classes=3, input_size=(16, 16))
    config = ClassifierConfig(spec=spec, recipe=RECIPE, seed=Seed(0))
    victim, _ = train_classifier(config, data, np.arange(len(data)))
    return Case(
        data=data,
        train_victim=lambda: copy.deepcopy(victim),
        train_on=lambda keep: pytest.fail("another victim was trained"),
        spec=spec,
        recipe=RECIPE,
        guide=ClipGuide("mini"),
        # The thresholds of its tests are of this seed.
        seed=2,
        run_dir=folder,
        clean=given,
    )


def accuracy(model: Normalized) -> float:
    """Return the share of test images that a model gets right."""
    return float((classifier_logits(model, TEST.images).argmax(1) == TEST.labels).mean())


def attack_success(model: Normalized) -> float:
    """Return the share of images of other classes that the trigger sends to class 0."""
    return float((classifier_logits(model, add_trigger(OTHERS.pixels)).argmax(1) == 0).mean())
