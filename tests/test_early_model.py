"""detection.early_model: early certainty gives poison away."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clipguard.compute.small_nets import SmallNetConfig
from clipguard.detection import early_model
from clipguard.detection.early_model import (
    EARLY_MODELS,
    ResidualConfig,
    early_model_named,
    early_model_scores,
    residual_loss,
)
from clipguard.detection.entropy_map import label_nll
from clipguard.errors import ClipguardError
from clipguard.models.spec import ModelSpec, build
from clipguard.pipeline.config import DefenseConfig
from clipguard.seeds import Seed
from clipguard.types import Scores, image_set
from tiny_runs import poisoned_set

N = 30
TINY = SmallNetConfig(
    architecture="preactresnet18-4", epochs=2, batch_size=16, optimizer="sgd", lr=0.05, schedule="one-cycle"
)
SHALLOW = replace(TINY, architecture="shallow-8", epochs=5, batch_size=8)


def residual(config):
    """Return the same training as a residual one."""
    return ResidualConfig(
        architecture=config.architecture,
        epochs=config.epochs,
        batch_size=config.batch_size,
        optimizer=config.optimizer,
        lr=config.lr,
        schedule=config.schedule,
    )


def equal_guide(n=N):
    """Return a guide to which all classes are equally likely."""
    return Scores(logits=np.zeros((n, 3), dtype=np.float32), scale=1.0, source="a guide that knows nothing")


def sure_guide(content, k=3):
    """Return a guide that is sure of the content of each image."""
    return Scores(logits=np.eye(k, dtype=np.float32)[content], scale=8.0, source="a guide that sees")


def a_set():
    images = np.random.default_rng(0).integers(0, 256, (N, 8, 8, 3), dtype=np.uint8)
    return image_set(images, np.arange(N) % 3, ("cat", "dog", "frog"))


def auroc(loss, poisoned):
    """Return by definition how often a poison has a lower loss than an innocent sample."""
    return (loss[poisoned][:, None] < loss[~poisoned][None]).mean()


@pytest.mark.parametrize("row", [0, N - 1])
def test_every_sample_is_learnt_and_scored(row):
    data = a_set()
    labels = data.labels.copy()
    labels[row] = (labels[row] + 1) % 3
    relabelled = image_set(data.images, labels, data.class_names)
    one, other = (early_model_scores(d, equal_guide(), TINY, Seed(0)) for d in (data, relabelled))
    assert one.logits.shape == (N, 3)
    assert one.scale == 1.0
    assert not np.array_equal(one.logits[:], other.logits[:])


@pytest.mark.parametrize("name", EARLY_MODELS)
def test_every_choice_can_be_built(name):
    config = early_model_named(name)
    assert config is EARLY_MODELS[name]
    spec = ModelSpec.sized(architecture=config.architecture, num_classes=3, input_size=(8, 8))
    assert build(spec, Seed(0)).training is False


@pytest.mark.parametrize("seed", [0, 1])
def test_poison_is_learnt_before_anything_else(seed):
    data, poisoned = poisoned_set(seed=seed)
    scores = early_model_scores(data, equal_guide(len(data)), SHALLOW, Seed(seed))
    assert auroc(label_nll(scores, data.labels), poisoned) > 0.9


def test_the_default_learns_poison_before_anything_else():
    data, poisoned = poisoned_set(seed=1)
    scores = early_model_scores(data, equal_guide(len(data)), DefenseConfig().early_model, Seed(1))
    assert auroc(label_nll(scores, data.labels), poisoned) > 0.9


def test_the_source_of_the_scores_names_the_net():
    assert "preactresnet18-4" in early_model_scores(a_set(), equal_guide(), TINY, Seed(0)).source


def test_the_hook_is_called_for_every_epoch_of_every_run():
    epochs = []
    early_model_scores(a_set(), equal_guide(), replace(TINY, runs=2), Seed(0), epochs.append)
    assert epochs == [1, 2, 1, 2]


def test_any_architecture_can_be_trained_once_in_the_way_of_the_reference():
    config = early_model_named("preactresnet18-4")
    assert config.architecture == "preactresnet18-4"
    assert config.runs == 1
    assert config.recipe(1000) == EARLY_MODELS["cgd"].recipe(1000)


def test_what_is_neither_a_choice_nor_an_architecture_is_an_error():
    with pytest.raises(ClipguardError, match=r"none of shallow, .*cgd; unknown model 'deepest'"):
        early_model_named("deepest")


def test_beside_a_guide_that_sees_the_classes_only_poison_is_left_to_learn():
    data, poisoned = poisoned_set()
    guide, mean = sure_guide(np.arange(len(data)) % 3), {}
    for name, config in (("alone", SHALLOW), ("beside", residual(SHALLOW))):
        loss = label_nll(early_model_scores(data, guide, config, Seed(0)), data.labels)
        mean[name] = loss[~poisoned].mean()
    # Bright thirds are learnt in no time, unless the guide has named them already.
    assert mean["alone"] < 0.05
    assert mean["beside"] > 0.5 * np.log(3)


@pytest.mark.parametrize("counts", [False, True], ids=["plain", "residual"])
def test_the_guide_counts_for_a_residual_model_alone(counts):
    data, config = a_set(), residual(TINY) if counts else TINY
    guides = sure_guide((data.labels + 1) % 3), equal_guide()
    one, other = (early_model_scores(data, guide, config, Seed(0)).logits[:] for guide in guides)
    assert np.array_equal(one, other) is not counts


@pytest.mark.parametrize("bound", [20.0, 3.0])
def test_the_loss_is_that_of_net_and_guide_together_and_the_guide_is_bounded(monkeypatch, bound):
    monkeypatch.setattr(early_model, "MOST_NATS", bound)
    labels = np.array([0, 1])
    guide = Scores(logits=np.array([[1.0, 0.0], [1.0, 0.0]], dtype=np.float32), scale=100.0, source="sure")
    rows, logits = torch.tensor([0, 1]), torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    # -log p of label 0 is log(1 + e^-bound); of label 1 it is log(1 + e^(bound - 2)): 2 nats are made good.
    expected = (np.log1p(np.exp(-bound)) + np.log1p(np.exp(bound - 2))) / 2
    loss = residual_loss(labels, guide)(logits, rows, torch.zeros(0))
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_as_it_is_the_guide_holds_at_most_20_nats_against_a_class():
    guide = Scores(logits=np.array([[1.0, 0.0]], dtype=np.float32), scale=1e6, source="sure")
    loss = residual_loss(np.array([1]), guide)(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(0))
    assert float(loss) == pytest.approx(np.log1p(np.exp(20.0)), rel=1e-6)
