"""Rivals that need clean samples on nets of every kind: what they change, and which they refuse."""

import copy

import numpy as np
import pytest
import torch

from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.inference import classifier_logits
from clipguard.compute.recipes import Recipe
from clipguard.defenses import Case
from clipguard.defenses.rivals.block_outputs import attention_map, block_names, outputs_of
from clipguard.defenses.rivals.fine_pruning import FinePruning
from clipguard.errors import ClipguardError
from clipguard.models.spec import ModelSpec, build, weights_digest
from clipguard.seeds import Seed
from clipguard.types import image_set
from test_rivals_clean import BRIEF

NETS = {
    "preactresnet18-2": ("stages.1", "stages.3", "stages.5", "stages"),
    "shallow-4": ("features.2", "features.5", "features.8"),
    "clipguard.models.nets:BackdoorBenchResNet": ("layer1", "layer2", "layer3", "layer4"),
    "test_efficientnet": ("blocks.0", "blocks.1", "blocks.2", "blocks.3", "blocks"),
    "test_convnext": ("stages.0", "stages.1", "stages.2", "stages"),
    "test_vit": ("blocks.1", "blocks.3", "blocks.5"),
}
SIZE = 64


def tiny_case(folder, architecture, size=32) -> Case:
    """Return a case of noise and of an untrained net."""
    spec = ModelSpec.sized(architecture=architecture, num_classes=3, input_size=(size, size))
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (200, size, size, 3), dtype=np.uint8), np.arange(200) % 3
    data = image_set(images, labels, ("cat", "dog", "frog"))
    victim = build(spec, Seed(1))
    return Case(
        data=data,
        train_victim=lambda: copy.deepcopy(victim),
        train_on=lambda keep: pytest.fail("another victim was trained"),
        spec=spec,
        recipe=Recipe(epochs=1, lr=0.01),
        guide=ClipGuide("mini"),
        seed=0,
        run_dir=folder,
        clean=data.take(np.arange(40)),
    )


@pytest.mark.parametrize("architecture", NETS)
def test_blocks_end_where_a_nets_resolution_changes_or_at_thirds_of_its_chain(architecture):
    spec = ModelSpec.sized(architecture=architecture, num_classes=3, input_size=(SIZE, SIZE))
    model, image = build(spec, Seed(0)), torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)
    names = block_names(model, image)
    assert names == NETS[architecture]
    with outputs_of(model, names) as outputs:
        model(image)
    assert all(attention_map(output, SIZE, SIZE).shape[1] > 1 for output in outputs.values())


@pytest.mark.parametrize(
    "architecture", ["preactresnet18-2", "test_efficientnet", "test_convnext", "test_vit"]
)
@pytest.mark.parametrize("name", BRIEF)
def test_a_defence_changes_the_net_and_leaves_a_working_one(tmp_path, name, architecture):
    case = tiny_case(tmp_path, architecture)
    if name == "anp" and architecture in ("test_convnext", "test_vit"):
        with pytest.raises(
            ClipguardError, match=f"needs BatchNorm, and '{architecture}' has none: leave out"
        ):
            BRIEF[name].defend(case)
        return
    defense = FinePruning(origin="given", published_samples=0, epochs=1) if name == "fp" else BRIEF[name]
    model = defense.defend(case).model
    assert np.isfinite(classifier_logits(model, case.data.images[:4])).all()
    if name != "anp":  # Four steps prune no channel.
        assert weights_digest(model) != weights_digest(case.victim)
    assert not [name for name, module in model.named_modules() if module._forward_hooks]
    assert not [name for name, module in model.named_modules() if module._forward_pre_hooks]


class NoHead(torch.nn.Module):
    """A net that multiplies by a matrix of its own."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.randn(3, num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) @ self.matrix


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fp", "finds no last linear layer in 'test_rivals_nets:NoHead'"),
        ("nad", "finds no blocks"),
        ("anp", "BatchNorm"),
    ],
)
def test_a_net_without_what_a_defence_works_on_is_refused_in_one_line(tmp_path, name, message):
    with pytest.raises(ClipguardError, match=message) as refusal:
        BRIEF[name].defend(tiny_case(tmp_path, "test_rivals_nets:NoHead", 8))
    assert "\n" not in str(refusal.value)


def test_a_layer_without_a_second_derivative_is_refused_in_one_line(tmp_path, monkeypatch):
    def lacking(*_, **__):
        raise NotImplementedError("derivative for aten::some_backward is not implemented")

    monkeypatch.setattr("clipguard.defenses.rivals.hypergradient.hypergradient", lacking)
    with pytest.raises(ClipguardError, match="needs second derivatives, which 'shallow-4' lacks"):
        BRIEF["i-bau"].defend(tiny_case(tmp_path, "shallow-4", 8))
