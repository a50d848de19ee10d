"""A user's architecture may be any code: what is no classifier of these classes is refused before a scan."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from clipguard.clip.zero_shot import ClipGuide
from clipguard.errors import ClipguardError
from clipguard.models.spec import ModelSpec, Normalized, build, check_sound, load, save
from clipguard.pipeline.defender import Defender
from clipguard.seeds import Seed
from tiny_data import CommandLine, few_steps, image_folder
from tiny_runs import CONFIG, poisoned_set, source_of

SPEC = ModelSpec.sized(architecture="preactresnet18-4", num_classes=3, input_size=(16, 16))


class Wrong(nn.Module):
    """Gives `answer(logits)`."""

    def __init__(self, answer):
        super().__init__()
        self.head = nn.Linear(3, 3)
        self.answer = answer

    def forward(self, x):
        return self.answer(self.head(x.mean((2, 3))))


class Tied(nn.Module):
    """Two layers share one tensor."""

    def __init__(self, num_classes):
        super().__init__()
        self.head, self.other = nn.Linear(3, num_classes), nn.Linear(3, num_classes)
        self.other.weight = self.head.weight

    def forward(self, x):
        return self.head(x.mean((2, 3))) + self.other(x.mean((2, 3)))


def more_classes(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(768, num_classes + 2))


def gives_a_dict(num_classes):
    return Wrong(lambda logits: {"logits": logits})


def gives_one_row(num_classes):
    return Wrong(lambda logits: logits[:1])


def gives_classes(num_classes):
    return Wrong(lambda logits: logits.argmax(1, keepdim=True).expand(-1, 3))


def gives_nan(num_classes):
    return Wrong(lambda logits: logits / 0 * 0)


def wants_larger_images(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, num_classes))


class AuxiliaryInTraining(Wrong):
    """Gives two answers while it is trained, as some networks of the literature do."""

    def forward(self, x):
        logits = super().forward(x)
        return (logits, logits) if self.training else logits


def two_answers_in_training(num_classes):
    return AuxiliaryInTraining(lambda logits: logits)


def lazy(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))


class MoreState(Wrong):
    """Keeps something in its state that is no tensor."""

    def get_extra_state(self):
        return {"anything": 1}

    def set_extra_state(self, state):
        """Take it back."""


def more_state(num_classes):
    return MoreState(lambda logits: logits)


def half(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(768, num_classes)).half()


def leaves(num_classes):
    raise SystemExit("bye")


def takes_nothing():
    return nn.Identity()


def here(factory):
    return f"{__name__}:{factory.__name__}"


UNSOUND = [
    (":", "cannot be imported"),
    (":net", "cannot be imported"),
    ("os:getcwd", "cannot be called with num_classes=3"),
    ("builtins:object", "cannot be called"),
    ("broken_at_import:net", "cannot be imported: no luck"),
    ("no.such:net", "PYTHONPATH=."),
    (here(takes_nothing), "cannot be called"),
    (here(more_classes), "gives [2, 5] for two images, not logits of [2, 3]"),
    (here(gives_a_dict), "gives dict for two images"),
    (here(gives_one_row), "gives [1, 3] for two images"),
    (here(gives_classes), "not logits of [2, 3]"),
    (here(gives_nan), "NaN or Inf logits"),
    (here(wants_larger_images), "fails on images of 16 x 16 pixels"),
    (here(two_answers_in_training), "gives tuple for two images"),
    (here(lazy), "state '1.weight' that is no plain tensor"),
    (here(more_state), "that is no plain tensor"),
    (here(half), "as float32"),
    (here(leaves), "cannot be called with num_classes=3: bye"),
]


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Let a module be importable that fails while it is imported."""
    (tmp_path / "broken_at_import.py").write_text("raise RuntimeError('no luck')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("broken_at_import", None)


@pytest.mark.parametrize(("name", "says"), UNSOUND)
def test_what_is_no_classifier_of_these_classes_is_refused_in_one_line(broken, name, says):
    spec = replace(SPEC, architecture=name)
    with pytest.raises(ClipguardError) as caught:
        check_sound(build(spec, Seed(0)), spec)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("by", ["unlearn", "retrain"])
@pytest.mark.parametrize("name", [name for name, _ in UNSOUND])
def test_a_model_that_cannot_be_trained_here_is_refused_before_the_scan(broken, tmp_path, name, by):
    defender = Defender(ClipGuide("mini"), tmp_path / "run", config=replace(CONFIG, architecture=name, by=by))
    with pytest.raises(ClipguardError):
        defender.fit(source_of(poisoned_set()[0]))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("factory", [more_classes, gives_a_dict, gives_nan, wants_larger_images])
def test_a_module_that_is_no_classifier_is_refused_before_the_scan(tmp_path, factory):
    defender = Defender(ClipGuide("mini"), tmp_path / "run", config=CONFIG)
    with pytest.raises(ClipguardError):
        defender.fit(source_of(poisoned_set()[0]), model=factory(3), spec=SPEC)
    assert not (tmp_path / "run").exists()


def test_finite_weights_that_overflow_are_refused_before_the_scan(tmp_path):
    save(build(SPEC, Seed(0)), SPEC, tmp_path / "m.safetensors")
    state = {
        name: value * 1e30 if value.is_floating_point() else value
        for name, value in load_file(tmp_path / "m.safetensors").items()
    }
    save_file(state, tmp_path / "huge.safetensors")
    defender = Defender(ClipGuide("mini"), tmp_path / "run", config=CONFIG)
    with pytest.raises(ClipguardError, match="gives NaN or Inf logits"):
        defender.fit(source_of(poisoned_set()[0]), model=tmp_path / "huge.safetensors", spec=SPEC)
    assert not (tmp_path / "run").exists()


def test_a_sound_model_passes_and_stays_as_it_was():
    model = build(SPEC, Seed(0))
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.random.get_rng_state()
    check_sound(model, SPEC)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


class Masked(Wrong):
    """Has a buffer that is infinite on purpose."""

    def __init__(self):
        super().__init__(lambda logits: logits)
        self.register_buffer("mask", torch.full((3,), -torch.inf))


def test_an_infinite_buffer_is_no_fault():
    check_sound(Normalized(Masked(), SPEC), SPEC)


class CastsInside(nn.Module):
    """Computes in another type than it is given; it sees which third of an image is bright."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(768, 3, dtype=torch.bfloat16)
        thirds = torch.zeros(3, 3, 16, 16)
        for kind in range(3):
            thirds[kind, :, :, 5 * kind : 5 * kind + 5] = 0.1
        self.head.weight.data.copy_(thirds.flatten(1))
        self.head.bias.data.zero_()

    def forward(self, x):
        return self.head(x.flatten(1).to(torch.bfloat16)).float()


def test_a_model_that_computes_in_bfloat16_is_repaired(tmp_path):
    defender = Defender(ClipGuide("mini"), tmp_path / "run", config=CONFIG).fit(
        source_of(poisoned_set()[0]), model=CastsInside(), spec=SPEC
    )
    assert defender.model_.network.head.weight.dtype == torch.bfloat16


def test_tied_weights_are_saved_and_read_back(tmp_path):
    spec = replace(SPEC, architecture=here(Tied))
    model = build(spec, Seed(1))
    save(model, spec, tmp_path / "m.safetensors")
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 16, 16), dtype=np.uint8))
    assert torch.equal(model(images), load(tmp_path / "m.safetensors", spec)(images))


@pytest.mark.parametrize("name", ["os:getcwd", here(more_classes)])
def test_the_command_line_refuses_it_in_one_line_and_leaves_nothing(capsys, monkeypatch, tmp_path, name):
    few_steps(monkeypatch)
    data = image_folder(tmp_path / "data", n=20)
    run = ("-o", tmp_path / "run", "--guide", "mini", "--architecture", name)
    ran = CommandLine(capsys)("defend", data, *run)
    # The first line says what is about to be done.
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 2)
    assert not (tmp_path / "run").exists()
