"""compute.precision: which trainings are in bfloat16 on the processor; a scan's small nets never are."""

import numpy as np
import pytest
import torch
from torch import nn

from clipguard.compute.device import PRECISION_VARIABLE, Device, choose_device, computing_on
from clipguard.compute.precision import gains_by_bfloat16
from clipguard.compute.recipes import SmallNetConfig
from clipguard.compute.small_nets import train_small_nets
from clipguard.compute.training import Recipe, cross_entropy, fit
from clipguard.errors import ClipguardError
from clipguard.models.spec import ModelSpec, build
from clipguard.seeds import Seed

HALF, EXACT = Device(trained_in="bfloat16"), Device()
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(40) % 2
RECIPE = Recipe(epochs=2, batch_size=8, lr=0.05)


def net(architecture):
    return build(ModelSpec.sized(architecture=architecture, num_classes=2, input_size=(32, 32)), Seed(1))


class Own(nn.Conv2d):
    """A layer that nobody here knows."""


@pytest.mark.parametrize(
    ("architecture", "gains"),
    [("preactresnet18-4", True), ("resnet10t", True), ("tf_efficientnet_lite0", False)],
)
def test_nets_of_known_layers_gain_unless_they_convolve_by_groups(architecture, gains):
    model = net(architecture)
    assert gains_by_bfloat16(model, (32, 32)) == gains
    assert not model.training
    model.head_of_a_user = Own(3, 3, 1)
    assert not gains_by_bfloat16(model, (32, 32))


def test_a_net_that_strides_over_a_single_value_is_trained_exactly():
    # Its last stage has maps of 2 x 2 at 32 pixels, of 1 x 1 at 16.
    assert gains_by_bfloat16(net("resnet10t"), (32, 32))
    assert not gains_by_bfloat16(net("resnet10t"), (16, 16))


def weights_after(device, *, exact):
    model, logits = net("preactresnet18-4"), []

    def loss(given, rows, images):
        logits.append(given.dtype)
        return cross_entropy(LABELS)(given, rows, images)

    with computing_on(device):
        fit(model, IMAGES, np.arange(40), loss, RECIPE, Seed(2), exact=exact)
    assert {*logits} == {torch.float32}
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def test_a_large_training_in_bfloat16_is_near_the_exact_one_and_an_exact_one_is_the_same_on_both():
    exact, half = weights_after(EXACT, exact=False), weights_after(HALF, exact=False)
    assert half.dtype == torch.float32
    assert not torch.equal(exact, half)
    assert torch.nn.functional.cosine_similarity(exact, half, dim=0) > 0.99
    assert torch.equal(half, weights_after(HALF, exact=False))
    assert torch.equal(exact, weights_after(HALF, exact=True))


def test_small_nets_of_a_scan_are_exact_on_every_processor():
    config = SmallNetConfig(
        architecture="shallow-4", epochs=1, batch_size=8, optimizer="sgd", lr=0.05, schedule="constant"
    )
    logits = []
    for device in (EXACT, HALF):
        with computing_on(device):
            everyone = np.ones(40, dtype=bool)
            nets = train_small_nets(config, IMAGES, 2, cross_entropy(LABELS), everyone, Seed(3))
            logits.append(nets.logits[:])
    assert np.array_equal(*logits)


@pytest.mark.parametrize(
    ("flags", "trained_in"),
    [
        ({"cpu_name": "AMD EPYC 9R14", "avx512_bf16": True, "amx_bf16": False}, "bfloat16"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, "bfloat16"),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, "float32"),
        ({"cpu_name": "AMD EPYC 7763", "avx512_bf16": False, "amx_bf16": False}, "float32"),
        ({}, "float32"),
    ],
)
def test_the_processor_trains_in_bfloat16_where_that_is_faster_and_nobody_wants_it_exact(
    flags, trained_in, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    for asked, expected in (("", trained_in), ("float32", "float32")):
        monkeypatch.setenv(PRECISION_VARIABLE, asked)
        assert choose_device("cpu") == Device(trained_in=expected)
    monkeypatch.setenv(PRECISION_VARIABLE, "half")
    with pytest.raises(ClipguardError, match="CLIPGUARD_PRECISION is 'half': give float32"):
        choose_device("cpu")
