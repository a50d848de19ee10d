"""models.spec: build by name, save and load without unpickling."""

import json
import struct
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from clipguard.errors import ClipguardError
from clipguard.models.nets import PreActResNet18
from clipguard.models.spec import ModelSpec, build, load, read_spec, save
from clipguard.seeds import Seed
from clipguard.types import Preprocessing

SPEC = ModelSpec.sized(architecture="preactresnet18-16", num_classes=3, input_size=(16, 16))
TIMM = replace(SPEC, architecture="test_resnet", preprocessing=Preprocessing(size=(32, 32)))


class LinearNet(nn.Module):
    """A user's own network: averages the image and applies one linear layer."""

    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, x):
        return self.head(x.mean((2, 3)))


def no_network_at_all(num_classes):
    return ["not", "a", "module"]


OWN = replace(SPEC, architecture=f"{__name__}:LinearNet")


@contextmanager
def refused(about):
    """Expect a ClipguardError of one line that says `about`."""
    with pytest.raises(ClipguardError, match=about) as caught:
        yield
    assert "\n" not in str(caught.value)


def pictures(n=4, size=16, seed=0):
    draw = np.random.default_rng(seed)
    return torch.from_numpy(draw.integers(0, 256, (n, 3, size, size), dtype=np.uint8))


def rewrite(path, change=None, metadata=None):
    """Rewrite the weights file with `change(state)` applied and other metadata."""
    state = load_file(path)
    if change is not None:
        change(state)
    save_file(state, path, metadata=metadata)


@pytest.fixture
def saved(tmp_path):
    """A weights file of SPEC."""
    path = tmp_path / "model.safetensors"
    save(build(SPEC, Seed(0)), SPEC, path)
    return path


def test_width_64_is_the_network_of_the_literature():
    net = PreActResNet18(num_classes=10)
    assert sum(value.numel() for value in net.parameters()) == 11_172_170
    assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in net.modules()) == 17


@pytest.mark.parametrize(("name", "width"), [("preactresnet18", 64), ("preactresnet18-8", 8)])
def test_the_name_gives_the_width(name, width):
    model = build(replace(SPEC, architecture=name), Seed(0))
    assert model.network.stem.out_channels == width


@pytest.mark.parametrize("spec", [SPEC, TIMM, OWN], ids=lambda spec: spec.architecture)
def test_saved_and_loaded_weights_and_logits_are_the_same_to_the_bit(spec, tmp_path):
    model = build(spec, Seed(7))
    save(model, spec, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors", spec)
    state, loaded = model.network.state_dict(), again.network.state_dict()
    assert state.keys() == loaded.keys()
    assert all(torch.equal(state[name], loaded[name]) for name in state)
    images = pictures(size=spec.input_size[0])
    with torch.inference_mode():
        assert torch.equal(model(images), again(images))
    if spec is not OWN:
        assert read_spec(tmp_path / "model.safetensors") == spec
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_saving_twice_writes_the_same_bytes(saved):
    before = saved.read_bytes()
    save(load(saved, SPEC), SPEC, saved)
    assert saved.read_bytes() == before


def test_input_normalisation_is_not_among_the_weights(saved):
    assert set(load_file(saved)) == set(build(SPEC, Seed(0)).network.state_dict())


def test_the_seed_decides_the_initial_weights_and_nothing_global_moves():
    before = torch.random.get_rng_state()
    one, same, other = (build(SPEC, Seed(s)).network.stem.weight for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_images_are_normalised_with_the_mean_and_deviation_of_the_spec():
    prepared = Preprocessing(size=(16, 16), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    spec = replace(OWN, preprocessing=prepared)
    model = build(spec, Seed(0))
    model.network.head = nn.Identity()
    images = pictures(n=2)
    by_hand = (images.double() / 255).mean((2, 3))
    by_hand = (by_hand - torch.tensor(prepared.mean)) / torch.tensor(prepared.std)
    assert torch.allclose(model(images).double(), by_hand, atol=1e-4)


def test_convolutions_and_their_input_are_channels_last_also_after_loading(saved):
    for model in (build(SPEC, Seed(0)), load(saved, SPEC)):
        inputs = []
        model.network.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0]))
        model(pictures())
        kernels = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
        assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
        assert inputs[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("spec", [SPEC, TIMM, OWN], ids=lambda spec: spec.architecture)
def test_every_weight_receives_a_gradient(spec):
    model = build(spec, Seed(0)).train()
    logits = model(pictures(n=8, size=spec.input_size[0]))
    nn.functional.cross_entropy(logits, torch.arange(8) % 3).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
    # The head, at least, cannot be at a stationary point under random logits.
    assert list(model.parameters())[-1].grad.abs().max() > 0


def test_one_gradient_step_lowers_the_loss_of_its_batch():
    model = build(SPEC, Seed(0)).train()
    images, labels = pictures(n=8), torch.arange(8) % 3
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    before = nn.functional.cross_entropy(model(images), labels)
    before.backward()
    optimizer.step()
    assert nn.functional.cross_entropy(model(images), labels) < before


@hypothesis_settings(max_examples=15)
@given(st.permutations(range(5)), st.integers(0, 2**32))
def test_in_evaluation_an_image_is_scored_alike_whatever_stands_beside_it(order, seed):
    model, images = build(SPEC, Seed(0)), pictures(n=5, seed=seed)
    with torch.inference_mode():
        assert torch.allclose(model(images)[list(order)], model(images[list(order)]), atol=1e-5)


def test_any_image_size_fits_the_default_network():
    model = build(SPEC, Seed(0))
    assert model(pictures(size=9)).shape == model(pictures(size=64)).shape == (4, 3)


@pytest.mark.parametrize(
    ("name", "about"),
    [
        ("resnet_of_nowhere", "unknown model 'resnet_of_nowhere'"),
        ("preactresnet18-wide", "unknown model"),
        ("no.such.package:net", "cannot be imported"),
        ("torch.nn:NoSuchNet", "cannot be imported"),
        (f"{__name__}:no_network_at_all", "returned list, not an nn.Module"),
    ],
)
def test_an_architecture_that_cannot_be_built_is_named(name, about):
    with refused(about):
        build(replace(SPEC, architecture=name), Seed(0))


def test_weights_of_another_class_count_are_refused(saved):
    with refused("does not fit preactresnet18-16 with 5 classes.*'head.bias'"):
        load(saved, replace(SPEC, num_classes=5))


def test_weights_of_another_width_are_refused(saved):
    with refused("does not fit preactresnet18-8"):
        load(saved, replace(SPEC, architecture="preactresnet18-8"))


@pytest.mark.parametrize("change", [lambda s: s.pop("head.bias"), lambda s: s.update(extra=torch.zeros(1))])
def test_a_missing_or_unknown_tensor_is_refused(saved, change):
    rewrite(saved, change)
    with refused("1 tensors missing, unknown or of another shape"):
        load(saved, SPEC)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused(saved, value):
    rewrite(saved, lambda state: state["stages.3.conv1.weight"].view(-1)[5].fill_(value))
    with refused("NaN or Inf weights in 'stages.3.conv1.weight'"):
        load(saved, SPEC)


def test_half_precision_weights_are_read_into_a_single_precision_model(saved):
    def halve(state):
        state.update({name: v.half() for name, v in state.items() if v.is_floating_point()})

    rewrite(saved, halve)
    model = load(saved, SPEC)
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert torch.equal(model.network.stem.weight.half(), build(SPEC, Seed(0)).network.stem.weight.half())


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-1000])


def claim_a_huge_header(path):
    path.write_bytes(struct.pack("<Q", 2**60) + path.read_bytes()[8:])


def claim_bytes_past_the_end(path):
    header = json.dumps({"w": {"dtype": "F32", "shape": [9999], "data_offsets": [0, 39996]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 16)


def be_a_pickle(path):
    path.write_bytes(b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00" + b"cos\nsystem\n(S'true'\ntR.")


def be_empty(path):
    path.write_bytes(b"")


def be_missing(path):
    path.unlink()


def be_a_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = [
    cut_short,
    claim_a_huge_header,
    claim_bytes_past_the_end,
    be_a_pickle,
    be_empty,
    be_missing,
    be_a_folder,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_no_sound_safetensors_file_is_refused(saved, damage):
    damage(saved)
    for read in (read_spec, lambda path: load(path, SPEC)):
        with refused("model .* (cannot be read as safetensors|is a pickle|is a folder)"):
            read(saved)


def test_a_file_of_somebody_else_has_no_spec_but_its_weights_are_read(saved):
    rewrite(saved, metadata={"format": "pt"})
    assert read_spec(saved) is None
    assert torch.equal(load(saved, SPEC).network.head.bias, build(SPEC, Seed(0)).network.head.bias)


@pytest.mark.parametrize(
    "header",
    [
        "{",
        "[]",
        "3",
        "null",
        '{"num_classes": 3}',
        '{"num_classes": 3, "input_size": 8, "mean": [0,0,0], "std": [1,1,1]}',
    ],
)
def test_a_damaged_header_is_refused(saved, header):
    rewrite(saved, metadata={"clipguard": header})
    with refused("damaged clipguard header"):
        read_spec(saved)


def test_a_weights_file_cannot_choose_code_to_run(saved):
    rewrite(saved, metadata={"clipguard": json.dumps(asdict(replace(SPEC, architecture="os:abort")))})
    with refused("wants the code 'os:abort' to run"):
        read_spec(saved)


@pytest.mark.parametrize("width", [2, 4, 6])
def test_networks_narrower_than_a_vector_register_survive_training(width):
    # In a process of its own: where this fails it takes the interpreter with it.
    code = (
        "import torch; from clipguard.models.spec import ModelSpec, build; from clipguard.seeds import Seed\n"
        f"spec = ModelSpec.sized(architecture='preactresnet18-{width}', num_classes=3, input_size=(32, 32))\n"
        "model = build(spec, Seed(0))\n"
        "images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)\n"
        "for _ in range(3): model.train()(images).square().sum().backward()\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_header_that_lies_about_the_weights_is_noticed_on_loading(saved):
    rewrite(saved, metadata={"clipguard": json.dumps(asdict(replace(SPEC, num_classes=7)))})
    claimed = read_spec(saved)
    assert claimed is not None
    assert claimed.num_classes == 7
    with refused("does not fit preactresnet18-16 with 7 classes"):
        load(saved, claimed)
