"""models.features: the head of every family of nets, and so what features are."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clipguard.compute.inference import classifier_logits, features, planes
from clipguard.models.features import head_of
from clipguard.models.spec import ModelSpec, Normalized, build
from clipguard.seeds import Seed

FAMILIES = [
    *(("resnet18", 32), ("efficientnet_lite0", 32), ("mobilenetv3_small_050", 32), ("regnetx_002", 32)),
    *(("vit_tiny_patch16_224", 32), ("deit_tiny_patch16_224", 32), ("convnext_atto", 32)),
    *(("densenet121", 32), ("resnetv2_18", 64), ("repvgg_a0", 32)),
]


def pictures(size, n=3):
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def check(model, size):
    """Check that the head makes the logits of the features, and return it."""
    images = pictures(size)
    head = head_of(model, planes(images[:1]))
    assert head is not None
    values = features(model, images, np.arange(3))
    assert values.shape == (3, head.weight.shape[1])
    with torch.no_grad():
        logits = F.linear(torch.from_numpy(values), head.weight.flatten(1), head.bias).numpy()
    assert np.allclose(logits, classifier_logits(model, images), atol=1e-4)
    assert not head._forward_pre_hooks
    assert not head._forward_hooks
    return head


@pytest.mark.parametrize(("name", "size"), FAMILIES)
def test_features_are_found_in_every_family(name, size):
    spec = ModelSpec.sized(architecture=name, num_classes=4, input_size=(size, size))
    assert check(build(spec, Seed(0)), size).weight.shape[0] == 4


class ByKeyword(nn.Module):
    """Gives its last layer the input by name, and calls it in no usual way."""

    def __init__(self):
        super().__init__()
        self.what_decides = nn.Linear(12, 4)

    def forward(self, x):
        return self.what_decides(input=F.adaptive_avg_pool2d(x, 2).flatten(1))


class OfPlaces(nn.Module):
    """Judges every place by a convolution and takes the mean of what it says."""

    def __init__(self):
        super().__init__()
        self.last = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.last(x).mean((2, 3))


class OfTokens(nn.Module):
    """Judges every row of pixels, as a transformer its tokens, and takes the mean of what it says."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        return self.head(x.permute(0, 2, 1, 3).flatten(2)).mean(1)


@pytest.mark.parametrize("network", [ByKeyword, OfPlaces, OfTokens])
def test_a_head_may_be_called_by_keyword_or_look_at_several_places(network):
    spec = ModelSpec.sized(num_classes=4, input_size=(8, 8))
    check(Normalized(network(), spec), 8)


def test_of_two_heads_whose_mean_is_taken_the_last_one_gives_the_features():
    spec = ModelSpec.sized(architecture="deit_tiny_distilled_patch16_224", num_classes=4, input_size=(32, 32))
    model = build(spec, Seed(0))
    assert head_of(model, planes(pictures(32)[:1])) is model.network.head_dist
