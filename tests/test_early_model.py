"""detection.early_model: early certainty gives poison away; what is reserved is scored but not learnt."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clipguard.compute.cross_validation import SmallNetConfig
from clipguard.compute.training import Recipe
from clipguard.detection.early_model import (
    EARLY_MODELS,
    ResidualConfig,
    early_model_named,
    early_model_scores,
    residual_loss,
)
from clipguard.detection.entropy_map import label_nll
from clipguard.errors import ClipguardError
from clipguard.models.nets import ShallowNet
from clipguard.models.spec import ModelSpec, build
from clipguard.pipeline import DefenseConfig
from clipguard.seeds import Seed
from clipguard.types import Scores, image_set
from tiny_runs import PLAN, poisoned_set

N = 30
QUICK = Recipe(epochs=2, lr=0.05, batch_size=16, crop=0.0, flip=False)
TINY = SmallNetConfig(architecture="preactresnet18-4", recipe=QUICK)
MUTE = Scores(logits=np.zeros((N, 3), dtype=np.float32), scale=1.0, source="a guide that knows nothing")


def noise(n=N, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


def a_set():
    return image_set(noise(), np.arange(N) % 3, ("cat", "dog", "frog"))


def test_the_suspicious_model_scores_reserved_samples_without_learning_them():
    reserved = np.arange(N) % 6 == 0
    data = a_set()
    labels = np.where(reserved, (data.labels + 1) % 3, data.labels)
    relabelled = image_set(data.images, labels, data.class_names)
    one = early_model_scores(data, MUTE, TINY, Seed(0), reserved)
    assert one.logits.shape == (N, 3)
    assert one.scale == 1.0
    assert np.array_equal(one.logits, early_model_scores(relabelled, MUTE, TINY, Seed(0), reserved).logits)
    assert not np.array_equal(one.logits, early_model_scores(relabelled, MUTE, TINY, Seed(0)).logits)


def test_without_a_reserve_every_sample_is_learnt():
    nobody = np.zeros(N, dtype=bool)
    one, other = (
        early_model_scores(a_set(), MUTE, TINY, Seed(0)),
        early_model_scores(a_set(), MUTE, TINY, Seed(0), nobody),
    )
    assert np.array_equal(one.logits, other.logits)


def test_the_choices_of_suspicious_model_are_those_that_are_documented():
    assert EARLY_MODELS["compact"] == SmallNetConfig(recipe=EARLY_MODELS["reference"].recipe)
    assert (EARLY_MODELS["averaged"].runs, EARLY_MODELS["out-of-fold"].folds) == (3, 2)
    reference = EARLY_MODELS["reference"]
    assert (reference.architecture, reference.runs, reference.folds) == ("preactresnet18-64", 3, 1)
    recipe = reference.recipe
    assert (recipe.epochs, recipe.batch_size, recipe.optimizer, recipe.lr) == (5, 256, "adam", 3e-4)
    assert (recipe.crop, recipe.flip) == (0.0, False)


def test_every_choice_can_be_built_and_sees_the_images_as_they_are():
    for probe in EARLY_MODELS.values():
        spec = ModelSpec(architecture=probe.architecture, num_classes=3, input_size=(8, 8))
        assert build(spec, Seed(0)).training is False
        # Augmentation would smear a trigger in the corner.
        assert (probe.recipe.crop, probe.recipe.flip) == (0.0, False)


def test_the_default_is_the_shallow_one():
    assert DefenseConfig().suspect == EARLY_MODELS["shallow"]
    spec = ModelSpec(architecture=DefenseConfig().suspect.architecture, num_classes=3, input_size=(8, 8))
    assert isinstance(build(spec, Seed(0)).network, ShallowNet)


@pytest.mark.parametrize("seed", [0, 1])
def test_poison_is_learnt_before_anything_else(seed):
    data, poisoned = poisoned_set(seed=seed)
    mute = replace(MUTE, logits=np.zeros((len(data), 3), dtype=np.float32))
    scores = early_model_scores(data, mute, PLAN.suspect, Seed(seed))
    loss = label_nll(scores, data.labels)
    # AUROC by its definition: how often a poison has a lower loss than an innocent sample.
    auroc = (loss[poisoned][:, None] < loss[~poisoned][None]).mean()
    assert auroc > 0.9


def test_the_source_of_the_scores_names_the_net():
    assert "preactresnet18-4" in early_model_scores(a_set(), MUTE, TINY, Seed(0)).source


def test_the_hook_hears_every_epoch_of_every_run():
    epochs = []
    early_model_scores(a_set(), MUTE, replace(TINY, runs=2), Seed(0), None, epochs.append)
    assert epochs == [1, 2, 1, 2]


@pytest.mark.parametrize("name", EARLY_MODELS)
def test_a_choice_is_found_by_its_name(name):
    assert early_model_named(name) is EARLY_MODELS[name]


def test_any_architecture_can_be_trained_in_the_way_of_the_reference():
    probe = early_model_named("preactresnet18-4")
    assert probe == SmallNetConfig(recipe=EARLY_MODELS["reference"].recipe, architecture="preactresnet18-4")


def test_what_is_neither_a_choice_nor_an_architecture_is_an_error():
    with pytest.raises(ClipguardError, match=r"none of shallow, .*reference; unknown model 'deepest'"):
        early_model_named("deepest")


def seeing(shown, k=3):
    """Return a guide that is sure of what each image shows."""
    return Scores(logits=np.eye(k, dtype=np.float32)[shown], scale=8.0, source="a guide that sees")


def test_beside_a_guide_that_sees_the_classes_only_poison_is_left_to_learn():
    data, poisoned = poisoned_set()
    shown = np.arange(len(data)) % 3
    alone = PLAN.suspect
    beside = ResidualConfig(architecture=alone.architecture, recipe=alone.recipe)
    mean = {}
    for name, suspect in (("alone", alone), ("beside", beside)):
        loss = label_nll(early_model_scores(data, seeing(shown), suspect, Seed(0)), data.labels)
        mean[name] = loss[~poisoned].mean()
    # Bright thirds are learnt in no time, unless the guide has named them already.
    assert mean["alone"] < 0.05
    assert mean["beside"] > 0.5 * np.log(3)


def test_alone_the_guide_has_no_say_and_beside_it_it_has():
    data = a_set()
    other = seeing((data.labels + 1) % 3)
    beside = ResidualConfig(architecture=TINY.architecture, recipe=TINY.recipe)
    for suspect, same in ((TINY, True), (beside, False)):
        told, untold = (early_model_scores(data, guide, suspect, Seed(0)).logits for guide in (other, MUTE))
        assert np.array_equal(told, untold) is same


def test_the_loss_is_that_of_net_and_guide_together_and_no_guide_is_surer_than_it_may_be():
    labels = np.array([0, 1])
    guide = Scores(logits=np.array([[1.0, 0.0], [1.0, 0.0]], dtype=np.float32), scale=100.0, source="sure")
    rows, logits = torch.tensor([0, 1]), torch.tensor([[0.0, 0.0], [0.0, 5.0]])
    # -log p of label 0 is log(1 + e^-20); of label 1 it is log(1 + e^15), since 5 nats are made good.
    expected = (np.log1p(np.exp(-20.0)) + np.log1p(np.exp(15.0))) / 2
    loss = residual_loss(labels, guide, 20.0)(logits, rows, torch.zeros(0))
    assert float(loss) == pytest.approx(expected, rel=1e-6)
