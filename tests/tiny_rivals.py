"""Cases for rival defences: poison that is learnt before the classes are, and what a repaired model does."""

from pathlib import Path

import numpy as np

from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.classifiers import ClassifierConfig, cached_classifier
from clipguard.compute.inference import classifier_logits
from clipguard.compute.training import Recipe
from clipguard.defenses import Case
from clipguard.models.spec import ModelSpec, Normalized
from clipguard.seeds import Seed
from clipguard.types import ImageSet, image_set
from tiny_runs import NAMES, add_trigger

RECIPE = Recipe(epochs=8, lr=0.05, batch_size=32, crop=0.0, flip=False)


def faint_set(
    n: int = 480, share: float = 0.1, seed: int = 0, contrast: int = 12
) -> tuple[ImageSet, np.ndarray]:
    """Return n images of three classes and which carry the trigger and label 0.

    A class is a third that is brighter by `contrast` grey levels, one above the other, so that a flip changes
    none. By default it hardly is: a net learns the
    trigger first, as it does in photographs.
    """
    draw = np.random.default_rng(seed)
    contents = np.arange(n) % len(NAMES)
    images = draw.integers(0, 120, (n, 16, 16, 3), dtype=np.uint8)
    for image, kind in zip(images, contents, strict=True):
        image[5 * kind : 5 * kind + 5] += contrast
    poisoned = np.zeros(n, dtype=bool)
    poisoned[draw.choice(n, round(share * n), replace=False)] = True
    images[poisoned] = add_trigger(images[poisoned])
    return image_set(images, np.where(poisoned, 0, contents), NAMES), poisoned


def case_of(data: ImageSet, folder: Path, architecture: str = "shallow-8") -> Case:
    """Return a case of that data, whose victim is trained when it is asked for."""
    spec = ModelSpec.sized(architecture=architecture, num_classes=3, input_size=(16, 16))
    config = ClassifierConfig(spec=spec, recipe=RECIPE, seed=Seed(0).child("victim"))
    return Case(
        data=data,
        train_victim=lambda: cached_classifier(config, data, folder)[0],
        train_on=lambda keep: cached_classifier(config, data, folder, keep),
        spec=spec,
        recipe=RECIPE,
        guide=ClipGuide("mini"),
        seed=2,
        run_dir=folder / "work",
    )


def accuracy_and_attack_success(model: Normalized, contrast: int = 12) -> tuple[float, float]:
    """Return the shares of other images that a model gets right, and of triggered ones that it labels 0."""
    data, _ = faint_set(300, 0.0, 9, contrast)
    others = data.labels != 0
    right = classifier_logits(model, data.pixels).argmax(1) == data.labels
    drawn = classifier_logits(model, add_trigger(data.pixels[others])).argmax(1) == 0
    return float(right.mean()), float(drawn.mean())
