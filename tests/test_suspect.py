"""clipguard.suspect: early certainty gives poison away; what is reserved is scored but not learnt."""

from dataclasses import replace

import numpy as np
import pytest

from clipguard.entropy import label_nll
from clipguard.errors import ClipguardError
from clipguard.models import ModelSpec, ShallowNet, build
from clipguard.pipeline import Plan
from clipguard.probes import Probe
from clipguard.seeds import Seed
from clipguard.suspect import SUSPECTS, suspect_named, suspect_scores
from clipguard.training import Recipe
from clipguard.types import image_set
from tiny_runs import PLAN, poisoned_set

N = 30
QUICK = Recipe(epochs=2, lr=0.05, batch_size=16, crop=0.0, flip=False)
TINY = Probe(architecture="preactresnet18-4", recipe=QUICK)


def noise(n=N, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


def a_set():
    return image_set(noise(), np.arange(N) % 3, ("cat", "dog", "frog"))


def test_the_suspicious_model_scores_reserved_samples_without_learning_them():
    reserved = np.arange(N) % 6 == 0
    data = a_set()
    labels = np.where(reserved, (data.labels + 1) % 3, data.labels)
    relabelled = image_set(data.images, labels, data.class_names)
    one = suspect_scores(data, TINY, Seed(0), reserved)
    assert one.logits.shape == (N, 3)
    assert one.scale == 1.0
    assert np.array_equal(one.logits, suspect_scores(relabelled, TINY, Seed(0), reserved).logits)
    assert not np.array_equal(one.logits, suspect_scores(relabelled, TINY, Seed(0)).logits)


def test_without_a_reserve_every_sample_is_learnt():
    nobody = np.zeros(N, dtype=bool)
    one, other = suspect_scores(a_set(), TINY, Seed(0)), suspect_scores(a_set(), TINY, Seed(0), nobody)
    assert np.array_equal(one.logits, other.logits)


def test_the_choices_of_suspicious_model_are_those_that_are_documented():
    assert SUSPECTS["compact"] == Probe(recipe=SUSPECTS["reference"].recipe)
    assert (SUSPECTS["averaged"].runs, SUSPECTS["out-of-fold"].folds) == (3, 2)
    reference = SUSPECTS["reference"]
    assert (reference.architecture, reference.runs, reference.folds) == ("preactresnet18-64", 3, 1)
    recipe = reference.recipe
    assert (recipe.epochs, recipe.batch_size, recipe.optimizer, recipe.lr) == (5, 256, "adam", 3e-4)
    assert (recipe.crop, recipe.flip) == (0.0, False)


def test_every_choice_can_be_built_and_sees_the_images_as_they_are():
    for probe in SUSPECTS.values():
        spec = ModelSpec(architecture=probe.architecture, num_classes=3, input_size=(8, 8))
        assert build(spec, Seed(0)).training is False
        # Augmentation would smear a trigger in the corner.
        assert (probe.recipe.crop, probe.recipe.flip) == (0.0, False)


def test_the_default_is_the_shallow_one():
    assert Plan().suspect == SUSPECTS["shallow"]
    spec = ModelSpec(architecture=SUSPECTS["shallow"].architecture, num_classes=3, input_size=(8, 8))
    assert isinstance(build(spec, Seed(0)).network, ShallowNet)


@pytest.mark.parametrize("seed", [0, 1])
def test_poison_is_learnt_before_anything_else(seed):
    data, poisoned = poisoned_set(seed=seed)
    scores = suspect_scores(data, PLAN.suspect, Seed(seed))
    loss = label_nll(scores, data.labels)
    # AUROC by its definition: how often a poison has a lower loss than an innocent sample.
    auroc = (loss[poisoned][:, None] < loss[~poisoned][None]).mean()
    assert auroc > 0.9


def test_the_source_of_the_scores_names_the_net():
    assert "preactresnet18-4" in suspect_scores(a_set(), TINY, Seed(0)).source


def test_the_hook_hears_every_epoch_of_every_run():
    epochs = []
    suspect_scores(a_set(), replace(TINY, runs=2), Seed(0), None, epochs.append)
    assert epochs == [1, 2, 1, 2]


@pytest.mark.parametrize("name", SUSPECTS)
def test_a_choice_is_found_by_its_name(name):
    assert suspect_named(name) is SUSPECTS[name]


def test_any_architecture_can_be_trained_in_the_way_of_the_reference():
    probe = suspect_named("preactresnet18-4")
    assert probe == Probe(recipe=SUSPECTS["reference"].recipe, architecture="preactresnet18-4")


def test_what_is_neither_a_choice_nor_an_architecture_is_an_error():
    with pytest.raises(ClipguardError, match=r"none of shallow, .*reference; unknown model 'deepest'"):
        suspect_named("deepest")
