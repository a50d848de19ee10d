"""Whether a repair mirrors images: what a model makes of them, and what the repair then does and says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clipguard.mitigation import mirroring
from clipguard.mitigation.mirroring import bears_mirroring, falls_by_class
from clipguard.models.spec import ModelSpec, Normalized
from clipguard.pipeline import unlearning_stage
from clipguard.runs import read_json
from clipguard.types import image_set
from test_unlearning_stage import CONFIG, repaired, result, victim  # noqa: F401  # fixtures

SPEC = ModelSpec.sized(architecture="shallow-4", num_classes=3, input_size=(8, 8))
NAMES = ("left", "right", "both")


class Sides(torch.nn.Module):
    """Says left, right or both, by where an image is bright."""

    def forward(self, x):
        left, right = x[..., :4].mean((1, 2, 3)), x[..., 4:].mean((1, 2, 3))
        return torch.stack([left - right, right - left, torch.full_like(left, 0.5)], 1)


def arrows(counts):
    """Return images whose bright half is their class."""
    labels = np.repeat(np.arange(3), counts)
    images = np.zeros((len(labels), 8, 8, 3), np.uint8)
    images[labels != 1, :, :4] = 255
    images[labels != 0, :, 4:] = 255
    return image_set(images, labels, NAMES), Normalized(Sides(), SPEC)


def test_a_class_that_mirrors_into_another_falls_and_a_symmetrical_one_does_not():
    data, model = arrows((20, 30, 40))
    everything = np.ones(len(data), bool)
    assert falls_by_class(model, data, everything) == [1.0, 1.0, 0.0]
    assert not bears_mirroring(model, data, everything)
    assert bears_mirroring(model, data, data.labels == 2)


def test_only_trusted_images_of_classes_with_some_have_a_say():
    data, model = arrows((9, 30, 40))
    trusted = np.arange(len(data)) != 20
    trusted[np.flatnonzero(data.labels == 1)[5:]] = False
    assert falls_by_class(model, data, trusted) == [0.0]
    assert bears_mirroring(model, data, trusted)


def test_images_are_asked_evenly_and_not_all(monkeypatch):
    data, model = arrows((20, 30, 400))
    asked = []
    monkeypatch.setattr(
        mirroring, "classifier_logits", lambda _, images: asked.append(len(images)) or np.zeros((1, 3))
    )
    bears_mirroring(model, data, np.ones(len(data), bool))
    assert asked[::2] == [20, 30, 200]


@pytest.mark.parametrize("bears", [True, False])
def test_a_repair_mirrors_or_says_that_it_does_not(result, victim, tmp_path, monkeypatch, bears):  # noqa: F811
    monkeypatch.setattr(unlearning_stage, "bears_mirroring", lambda *_: bears)
    recipes, unlearn = [], unlearning_stage.unlearn

    def noted(model, data, partition, guide, config, *rest, **more):
        recipes.append(config.recipe)
        return unlearn(model, data, partition, guide, config, *rest, **more)

    monkeypatch.setattr(unlearning_stage, "unlearn", noted)
    stage = repaired(result, victim, tmp_path / "run", recipe=replace(CONFIG.unlearning.recipe, flip=True))
    assert [recipe.flip for recipe in recipes] == [bears]
    assert read_json(stage.path / "repair.json")["flip"] is bears
    notes = read_json(stage.path / "notes.json") if (stage.path / "notes.json").exists() else []
    assert any("mirrored" in note for note in notes) is not bears
    recipe = unlearning_stage.chosen_recipe(stage.path, replace(recipes[0], flip=True))
    assert recipe.flip is bears
