"""model.json: what it says is true of the weights, and its lines load them; ONNX gives the same logits."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.inference import classifier_logits
from clipguard.errors import ClipguardError
from clipguard.models.onnx_file import write_onnx
from clipguard.models.spec import ModelSpec, build, save
from clipguard.pipeline.defender import Defender
from clipguard.pipeline.model_card import MODEL_CARD, write_model_card
from clipguard.pipeline.summary import own_rates
from clipguard.runs import read_json, verify_run
from clipguard.seeds import Seed
from clipguard.types import Preprocessing
from tiny_data import CommandLine
from tiny_report import make_run
from tiny_runs import CONFIG, NAMES, poisoned_set, source_of

DOCUMENT = Path(__file__).parents[1] / "docs" / "results-format.md"
TIMM = ("resnet10t", "test_vit")
"""A net of convolutions, and a transformer that has to know the size of its images."""


def spec_of(architecture, side=32):
    preprocessing = Preprocessing(size=(side, side), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    return ModelSpec(architecture=architecture, num_classes=3, preprocessing=preprocessing)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Return a defender that has repaired a net of clipguard's own."""
    return Defender(ClipGuide("mini"), tmp_path_factory.mktemp("fit") / "run", config=CONFIG).fit(
        source_of(poisoned_set()[0])
    )


def carded(fitted, architecture):
    """Return the folder of a run whose repaired model has another architecture, and that model."""
    spec = spec_of(architecture)
    model = build(spec, Seed(3))
    run = fitted.scan_.context.run
    with run.publishing("model.safetensors") as path:
        save(model, spec, path, NAMES)
    other = Defender(fitted.guide, run.path, config=CONFIG)
    vars(other).update(vars(fitted) | {"spec_": spec, "model_": model})
    write_model_card(other, *own_rates(fitted))
    return run.path, model


def loaded(run, monkeypatch):
    monkeypatch.chdir(run)
    names = {}
    exec("\n".join(read_json(run / MODEL_CARD)["load"]), names)
    return names["model"]


def test_the_card_says_what_the_weights_are_and_how_good(fitted):
    before, after = own_rates(fitted)
    write_model_card(fitted, before, after)
    run = fitted.scan_.context.run.path
    card = read_json(run / MODEL_CARD)
    assert (card["architecture"], card["classes"]) == ("preactresnet18-4", [*NAMES])
    assert card["preprocessing"]["size"] == [16, 16]
    assert (card["before"]["accuracy"], card["after"]["accuracy"]) == (before.accuracy, after.accuracy)
    assert card["data"]["n"] == 240
    assert card["data"]["fingerprint"] == fitted.scan_.context.source.fingerprint
    status = {one.path: one.status for one in verify_run(run)}
    assert (status[MODEL_CARD], status["model.safetensors"]) == ("ok", "ok")


def test_the_lines_load_an_own_net(fitted, monkeypatch):
    write_model_card(fitted, None, None)
    model = loaded(fitted.scan_.context.run.path, monkeypatch)
    images = fitted.scan_.data.images[:8]
    x = torch.tensor(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = model(fitted.model_.scaled(x))
    np.testing.assert_allclose(logits, classifier_logits(fitted.model_, images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", TIMM)
def test_four_lines_load_a_net_of_timm_without_clipguard(fitted, monkeypatch, architecture):
    run, model = carded(fitted, architecture)
    card = read_json(run / MODEL_CARD)
    assert len(card["load"]) == 4
    assert "clipguard" not in "\n".join(card["load"])
    net = loaded(run, monkeypatch)
    assert {name: value.tolist() for name, value in net.state_dict().items()} == {
        name: value.tolist() for name, value in model.network.state_dict().items()
    }
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(net(x), model.network(x), atol=1e-5)
    # The document shows the same lines, with an empty one after the imports.
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert "\n".join(card["load"]) in ["\n".join(filter(None, block.splitlines())) for block in blocks]


@pytest.mark.parametrize("architecture", ["preactresnet18-4", *TIMM])
def test_onnx_gives_the_logits_of_the_model_for_any_number_of_images(
    tmp_path, monkeypatch, architecture, capsys
):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    run, spec = make_run(tmp_path / "run"), spec_of(architecture)
    model = build(spec, Seed(3))
    save(model, spec, run / "model.safetensors", NAMES)
    ran = CommandLine(capsys)("export", run, "--to", "onnx", "--json")
    assert ran.code == 0
    assert Path(json.loads(ran.out)["file"]) == run / "model.onnx"
    session = runtime.InferenceSession(run / "model.onnx", providers=["CPUExecutionProvider"])
    draw = np.random.default_rng(0)
    for n in (1, 5):
        images = draw.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        (logits,) = session.run(["logits"], {"images": images.transpose(0, 3, 1, 2)})
        np.testing.assert_allclose(logits, classifier_logits(model, images), rtol=1e-3, atol=1e-4)


def test_without_a_model_or_its_exporter_onnx_is_one_line(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    with pytest.raises(ClipguardError, match=r"has no model.safetensors"):
        write_onnx(run, tmp_path / "a.onnx")
    monkeypatch.setattr("clipguard.models.onnx_file.find_spec", lambda name: None)
    with pytest.raises(ClipguardError, match=r"pip install clipguard\[onnx\]"):
        write_onnx(run, tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()


def test_a_net_that_cannot_be_written_is_one_line_and_leaves_no_file(tmp_path, monkeypatch):
    run, spec = make_run(tmp_path / "run"), spec_of("preactresnet18-4")
    save(build(spec, Seed(0)), spec, run / "model.safetensors", NAMES)

    def fails(*_, **__):
        raise RuntimeError("operator is unknown\nto ONNX")

    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(ClipguardError, match="cannot be written as ONNX: operator is unknown"):
        write_onnx(run, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == [run]
