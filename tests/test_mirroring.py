"""Whether a repair mirrors images: what a model makes of them, and what the repair then does and says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clipguard.clip.zero_shot import DIGIT_NAMES
from clipguard.mitigation.mirroring import bears_mirroring, changes, names_against_mirroring
from clipguard.models.spec import ModelSpec, Normalized
from clipguard.pipeline import defender, repair, unlearning_stage
from clipguard.pipeline.defender import Defender
from clipguard.runs import read_json
from clipguard.types import image_set
from test_defender import GUIDE, scan_folder, scanned_folder, source  # noqa: F401  # fixtures
from test_unlearning_stage import CONFIG, repaired, result, victim  # noqa: F401  # fixtures

NAMES = ("left", "right", "both")
SPEC = ModelSpec.sized(architecture="shallow-4", num_classes=3, input_size=(8, 8))
MIRRORING = replace(CONFIG.unlearning.recipe, flip=True)


class Sides(torch.nn.Module):
    """Says left, right or both, by where an image is bright."""

    def forward(self, x):
        left, right = x[..., :4].mean((1, 2, 3)), x[..., 4:].mean((1, 2, 3))
        return torch.stack([left - right, right - left, torch.full_like(left, 0.5)], 1)


def arrows(counts):
    """Return images whose bright half is their class, and a model that tells them apart."""
    labels = np.repeat(np.arange(3), counts)
    images = np.zeros((len(labels), 8, 8, 3), np.uint8)
    images[labels != 1, :, :4] = 255
    images[labels != 0, :, 4:] = 255
    return image_set(images, labels, NAMES), Normalized(Sides(), SPEC)


def test_a_class_that_mirrors_into_another_is_lost_and_a_symmetrical_one_is_not():
    data, model = arrows((20, 30, 40))
    everything = np.ones(len(data), bool)
    assert list(changes(model, data, everything)) == [(20, 20, 0), (30, 30, 0), (40, 0, 0)]
    assert not bears_mirroring(model, data, everything)
    assert bears_mirroring(model, data, data.labels == 2)


@pytest.mark.parametrize(("count", "bears"), [(8, True), (9, False)])
def test_a_few_images_may_change_by_chance_and_only_trusted_ones_have_a_say(count, bears):
    # Of three classes at a level of 0.01, nine images are the fewest: 2^-9 < 0.01 / 3 < 2^-8.
    data, model = arrows((30, 0, 40))
    trusted = (data.labels == 2) | (np.arange(len(data)) < count)
    assert bears_mirroring(model, data, trusted) is bears


@pytest.mark.parametrize(("lost", "bears"), [(10, True), (11, False)])
def test_a_class_may_lose_a_fifth_of_its_images(lost, bears):
    data, model = arrows((lost, 0, 50 - lost))
    alike = image_set(data.pixels, np.zeros(50, np.int64), NAMES)
    model.network = Either(model.network)
    assert bears_mirroring(model, alike, np.ones(50, bool)) is bears


class Either(torch.nn.Module):
    """Takes what is bright on both sides for left, too."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        logits = self.network(x)
        logits[:, 0] = torch.maximum(logits[:, 0], logits[:, 2])
        logits[:, 2] = 0
        return logits


def test_images_of_a_class_are_asked_evenly_and_not_all():
    data, model = arrows((0, 0, 1000))
    images = data.pixels.copy()
    images[::20, :, 4:] = 0
    changed = image_set(images, np.zeros(1000, np.int64), NAMES)
    assert list(changes(model, changed, np.ones(1000, bool))) == [(50, 50, 0)]


@pytest.mark.parametrize("bears", [True, False])
def test_a_repair_mirrors_or_says_that_it_does_not(result, victim, tmp_path, monkeypatch, bears):  # noqa: F811
    monkeypatch.setattr(repair, "bears_mirroring", lambda *_: bears)
    recipes, unlearn = [], unlearning_stage.unlearn

    def noted(model, data, partition, guide, config, *rest, **more):
        recipes.append(config.recipe)
        return unlearn(model, data, partition, guide, config, *rest, **more)

    monkeypatch.setattr(unlearning_stage, "unlearn", noted)
    stage = repaired(result, victim, tmp_path / "run", recipe=MIRRORING)
    assert [recipe.flip for recipe in recipes] == [bears]
    assert read_json(stage.path / "repair.json")["flip"] is bears
    notes = read_json(stage.path / "notes.json") if (stage.path / "notes.json").exists() else []
    assert any("mirrored" in note for note in notes) is not bears
    assert unlearning_stage.chosen_recipe(stage.path, MIRRORING).flip is bears


def test_a_finished_repair_is_of_its_mirroring(result, victim, tmp_path, monkeypatch):  # noqa: F811
    cached = []
    for bears in (True, True, False, False):
        monkeypatch.setattr(repair, "bears_mirroring", lambda *_, bears=bears: bears)
        cached.append(repaired(result, victim, tmp_path / "run", recipe=MIRRORING).cached)
    assert cached == [False, True, False, True]


def test_where_mirroring_is_off_nobody_asks(result, victim, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(repair, "bears_mirroring", lambda *_: pytest.fail("asked"))
    repaired(result, victim, tmp_path / "run", recipe=replace(MIRRORING, flip=False))


@pytest.mark.parametrize("bears", [True, False])
def test_a_model_is_trained_anew_as_the_one_before_bears_it(source, scanned_folder, monkeypatch, bears):  # noqa: F811
    monkeypatch.setattr(repair, "bears_mirroring", lambda *_: bears)
    config = replace(CONFIG, by="retrain", victim=replace(CONFIG.victim, flip=True))
    done = Defender(GUIDE, scanned_folder, config=config).fit(source)
    (line,) = [line for line in done.warnings_ if "mirrored" in line] or [""]
    assert (line == unlearning_stage.NOT_MIRRORED) is not bears
    flips = [
        read_json(done.stages_[name].path / "manifest.json")["config"]["recipe"]["flip"]
        for name in ("victim", "retraining")
    ]
    assert flips == [True, bears]


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (("Stop", "Keep right", "Keep left"), ("Keep right", "Keep left")),
        (("turn_left", "turn_right"), ("turn_left", "turn_right")),
        (("TurnLeft", "TurnRight"), ("TurnLeft", "TurnRight")),
        (("LEFT-to-right", "right to left"), ("LEFT-to-right", "right to left")),
        (("left", "centre"), None),
        (("leftovers", "rightovers"), None),
        (("", "一"), None),
    ],
)
def test_names_that_differ_in_left_and_right_only_speak_against_mirroring(names, pair):
    expected = f"classes {pair[0]!r} and {pair[1]!r} may be mirror images of each other" if pair else ""
    assert names_against_mirroring(names) == expected


def test_digits_are_known_by_their_words_and_numbers_of_classes_are_no_digits():
    assert names_against_mirroring(DIGIT_NAMES[::-1]) == "the classes are digits"
    assert not names_against_mirroring(tuple("0123456789"))
    assert not names_against_mirroring(DIGIT_NAMES[:9])


@pytest.mark.parametrize(("wanted", "reason"), [(True, "their names"), (True, ""), (False, "their names")])
def test_a_model_is_trained_as_the_class_names_bear_it(source, scanned_folder, monkeypatch, wanted, reason):  # noqa: F811
    monkeypatch.setattr(defender, "names_against_mirroring", lambda names: reason)
    config = replace(CONFIG, victim=replace(CONFIG.victim, flip=wanted))
    done = Defender(GUIDE, scanned_folder, config=config).fit(source)
    recipe = read_json(done.stages_["victim"].path / "manifest.json")["config"]["recipe"]
    assert recipe["flip"] is (wanted and not reason)
    said = "the model was trained without mirrored images: their names"
    assert (said in done.warnings_) is bool(wanted and reason)
