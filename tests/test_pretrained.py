"""Transfer: all of a net but its head starts from given weights."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from clipguard.errors import ClipguardError
from clipguard.models.pretrained import take_body
from clipguard.models.spec import ModelSpec, build
from clipguard.seeds import Seed

NET = "resnet10t"


def built(k: int, net: str = NET):
    return build(ModelSpec.sized(architecture=net, num_classes=k, input_size=(32, 32)), Seed(1))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Weights of the same net for another number of classes, in timm's names."""
    net, path = timm.create_model(NET, num_classes=7), tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_file(net.state_dict(), path)
    return net.state_dict(), path


def test_all_but_the_head_is_taken_and_the_head_starts_anew(pretrained):
    given, path = pretrained
    model = built(3)
    take_body(model, path, Seed(2))
    state = model.network.state_dict()
    head = {"fc.weight", "fc.bias"}
    assert all(torch.equal(state[name], given[name]) for name in state.keys() - head)
    assert state["fc.weight"].shape == (3, 512)
    assert not torch.equal(state["fc.weight"], built(3).network.state_dict()["fc.weight"])


def test_the_head_is_that_of_the_seed(pretrained):
    heads = []
    for seed in (2, 2, 3):
        model = built(3)
        take_body(model, pretrained[1], Seed(seed))
        heads.append(model.network.fc.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_weights_of_another_net_are_refused_and_named(pretrained):
    with pytest.raises(ClipguardError, match=r"net.safetensors holds another net: .* first '"):
        take_body(built(3, "resnet18"), pretrained[1], Seed(0))


def test_a_net_that_is_none_of_timms_is_refused(pretrained):
    with pytest.raises(ClipguardError, match=r"ShallowNet cannot start from .*: name a net of timm"):
        take_body(built(3, "shallow-8"), pretrained[1], Seed(0))
