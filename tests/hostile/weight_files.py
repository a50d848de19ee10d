"""Hostile model files and guide folders."""

import json
import os
import struct
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save, save_file

from clipguard.clip.loading import CONFIG, WEIGHTS
from clipguard.models.spec import ModelSpec, build
from clipguard.seeds import Seed
from hostile.case import Case, trap

SPEC: dict[str, Any] = {
    "architecture": "preactresnet18-2",
    "num_classes": 2,
    "input_size": [8, 8],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
}


def _state() -> dict[str, torch.Tensor]:
    spec = ModelSpec.sized(architecture="preactresnet18-2", num_classes=2, input_size=(8, 8))
    return {name: value.contiguous() for name, value in build(spec, Seed(0)).network.state_dict().items()}


def raw(header: object, content: bytes = b"", length: int | None = None) -> bytes:
    """Return a safetensors file by hand."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


def _tensor(shape: list[int], start: int, stop: int, kind: str = "F32") -> dict[str, Any]:
    return {"w": {"dtype": kind, "shape": shape, "data_offsets": [start, stop]}}


def _model(change: Callable[[dict[str, torch.Tensor]], object]) -> bytes:
    state = _state()
    change(state)
    return bytes(save(state, metadata={"clipguard": json.dumps(SPEC)}))


def _spec(**fields: Any) -> bytes:
    return bytes(save(_state(), metadata={"clipguard": json.dumps(SPEC | fields)}))


def _first(value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda state: state["head.weight"].view(-1)[:1].fill_(value)


MODELS: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "a header that claims 2**60 bytes": lambda: raw({}, length=2**60),
    "a header that claims 100 MB": lambda: raw({}, length=100_000_000),
    "a header that is no JSON": lambda: raw(b"{" * 100),
    "a header nested too deep": lambda: raw(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "a header of a list": lambda: raw([]),
    "a header that is no UTF-8": lambda: raw(b"\xff" * 40),
    "offsets beyond the end": lambda: raw(_tensor([9999], 0, 39_996), bytes(16)),
    "offsets that run backwards": lambda: raw(_tensor([1], 4, 0), bytes(4)),
    "offsets of 2**64": lambda: raw(_tensor([1], 0, 2**64), bytes(4)),
    "a shape that overflows": lambda: raw(_tensor([2**32, 2**32], 0, 4), bytes(4)),
    "a shape of a negative number": lambda: raw(_tensor([-1], 0, 4), bytes(4)),
    "a shape unlike its bytes": lambda: raw(_tensor([3], 0, 4), bytes(4)),
    "an unknown type": lambda: raw(_tensor([1], 0, 4, "Q99"), bytes(4)),
    "tensors that overlap": lambda: raw(
        {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, bytes(4)
    ),
    "bytes that nothing names": lambda: raw(_tensor([1], 0, 4), bytes(4000)),
    "NaN": lambda: _model(_first(float("nan"))),
    "Inf": lambda: _model(_first(float("inf"))),
    "complex numbers": lambda: _model(
        lambda state: state.update({"head.weight": state["head.weight"].to(torch.complex64)})
    ),
    "a tensor too few": lambda: _model(lambda state: state.pop("head.bias")),
    "a tensor too many": lambda: _model(lambda state: state.update(extra=torch.zeros(1))),
    "another shape": lambda: _model(lambda state: state.update({"head.bias": torch.zeros(3)})),
    "a name of 1 MB": lambda: _model(lambda state: state.update({"n" * (1 << 20): torch.zeros(1)})),
    "code for an architecture": lambda: _spec(architecture="os:system"),
    "an unknown architecture": lambda: _spec(architecture="x" * 100),
    "an architecture of 1 MB": lambda: _spec(architecture="x" * (1 << 20)),
    "an architecture of 10**9 channels": lambda: _spec(architecture="preactresnet18-1000000000"),
    "an architecture of 5,000 digits": lambda: _spec(architecture="shallow-" + "9" * 5000),
    "10**12 classes": lambda: _spec(num_classes=10**12),
    "minus one class": lambda: _spec(num_classes=-1),
    "classes that are a text": lambda: _spec(num_classes="two"),
    "an input of 10**9 pixels": lambda: _spec(input_size=[1_000_000_000, 8]),
    "a mean of NaN": lambda: _spec(mean=[float("nan")] * 3),
    "a deviation of zero": lambda: _spec(std=[0, 0, 0]),
    "a description nested too deep": lambda: bytes(save(_state(), metadata={"clipguard": "[" * 100_000})),
    "a description of 20 MB": lambda: bytes(save(_state(), metadata={"clipguard": " " * (20 << 20)})),
    "no description": lambda: bytes(save(_state())),
}

TINY: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
    "custom_text": True,
}


def _guide(config: bytes, state: Callable[[Path], bytes] | None = None) -> Callable[[Path], str]:
    def make(root: Path) -> str:
        (root / CONFIG).write_bytes(config)
        if state is None:
            save_file({"w": torch.zeros(3)}, root / WEIGHTS)
        else:
            (root / WEIGHTS).write_bytes(state(root))
        return f"local-dir:{root}"

    return make


def _config(part: str = "", **fields: Any) -> bytes:
    config = json.loads(json.dumps(TINY))
    (config[part] if part else config).update(fields)
    return json.dumps({"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}).encode()


GUIDES: dict[str, bytes] = {
    "an empty config": b"",
    "a config nested too deep": b"[" * 500_000,
    "a config of nested models": b'{"model_cfg":' + b'{"a":' * 900 + b"1" + b"}" * 901,
    "a config of 20 MB": b" " * (20 << 20) + b"{}",
    "a config of a list": b"[]",
    "10**9 layers": _config("vision_cfg", layers=10**9),
    "a width of 10**9": _config("vision_cfg", width=10**9),
    "a width that its weights do not have": _config("vision_cfg", width=16_384, head_width=64, layers=24),
    "a vocabulary of 10**12": _config("text_cfg", vocab_size=10**12),
    "a number of 400 digits": _config("text_cfg", vocab_size=10**400),
    "an infinite number": _config("text_cfg", mlp_ratio=float("inf")),
    "images of 100,000 pixels a side": _config("vision_cfg", image_size=100_000),
    "weights from elsewhere": _config("vision_cfg", timm_model_name="hf-hub:nobody/x"),
    "pretrained weights from elsewhere": _config(
        "vision_cfg", timm_model_name="resnet18", timm_model_pretrained=True
    ),
    "code of a stranger": _config("text_cfg", tokenizer_kwargs={"trust_remote_code": True}),
    "an unknown field": _config("vision_cfg", no_such_field=1),
    "texts for numbers": _config("vision_cfg", width="wide"),
    "weights of another model": _config(),
}
PREPARED: dict[str, dict[str, Any]] = {
    "a deviation of zero": {"std": [0, 0, 0]},
    "five means": {"mean": [0.5] * 5},
    "a mean that is a text": {"mean": "grey"},
    "images of minus 96 pixels": {"size": -96},
}
"""How a guide is told to prepare images, with weights that are sound."""


def _prepared(fields: dict[str, Any]) -> Callable[[Path], str]:
    mini = Path(str(resources.files("clipguard"))) / "clip" / "mini"

    def make(root: Path) -> str:
        config = json.loads((mini / CONFIG).read_text())
        config["preprocess_cfg"] |= fields
        if "size" in fields:
            config["model_cfg"]["vision_cfg"]["image_size"] = fields["size"]
        return _guide(json.dumps(config).encode(), lambda _: (mini / WEIGHTS).read_bytes())(root)

    return make


def _pickles(root: Path) -> str:
    (root / CONFIG).write_bytes(_config())
    for name in ("open_clip_pytorch_model.bin", "model.pt", "pytorch_model.ckpt"):
        (root / name).write_bytes(trap(root))
    return f"local-dir:{root}"


def _file(content: Callable[[Path], bytes], name: str = "m.safetensors") -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        (root / name).write_bytes(content(root))
        return root / name

    return make


def _pipe(root: Path) -> Path:
    os.mkfifo(root / "m.safetensors")
    return root / "m.safetensors"


def weight_cases() -> Iterator[Case]:
    """Return the cases."""
    for what, content in MODELS.items():
        make = _file(lambda _, content=content: content())
        yield Case(name=f"model: {what}", expected="refused", make=make, reader="model")
    for name in ("m.safetensors", "m.pt", "m.npy"):
        yield Case(
            name=f"model: a pickle called {name}", expected="refused", make=_file(trap, name), reader="model"
        )
    yield Case(name="model: a pipe", expected="refused", make=_pipe, reader="model")
    for what, config in GUIDES.items():
        yield Case(name=f"guide: {what}", expected="refused", make=_guide(config), reader="guide")
    for what, fields in PREPARED.items():
        yield Case(name=f"guide: {what}", expected="refused", make=_prepared(fields), reader="guide")
    yield Case(
        name="guide: a pickle for weights", expected="refused", make=_guide(_config(), trap), reader="guide"
    )
    yield Case(name="guide: pickles beside its config", expected="refused", make=_pickles, reader="guide")
