"""model.json: what a repaired model is, and how it is loaded without clipguard where timm knows it."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import msgspec

from clipguard import __version__
from clipguard.data.provenance import recorded_source
from clipguard.models.spec import ModelSpec, loads_with_timm, timm_arguments
from clipguard.runs import described, write_json
from clipguard.runs.summary import Rates

if TYPE_CHECKING:
    from clipguard.pipeline.defender import Defender

MODEL: Final = "model.safetensors"
MODEL_CARD: Final = "model.json"
SCHEMA_VERSION: Final = 1


def write_model_card(defender: "Defender", before: Rates | None, after: Rates | None) -> None:
    """Write model.json beside the weights: architecture, classes, preprocessing, rates, data, loading."""
    run, spec = defender.scan_.context.run, defender.spec_
    data = recorded_source(defender.stages_["embeddings"].path)
    card = {
        "schema_version": SCHEMA_VERSION,
        "clipguard": __version__,
        "weights": {"file": MODEL, **described(run.path / MODEL)},
        "architecture": spec.architecture,
        "arguments": _arguments(spec),
        "classes": list(defender.scan_.data.class_names),
        "preprocessing": {**asdict(spec.preprocessing), "input": "RGB in 0 to 1, channels first"},
        "before": None if before is None else msgspec.to_builtins(before),
        "after": None if after is None else msgspec.to_builtins(after),
        "data": {
            "location": run.manifest["source"]["location"],
            "n": len(defender.scan_.data),
            "fingerprint": data["fingerprint"],
        },
        "load": _loading(spec),
    }
    with run.publishing(MODEL_CARD) as path:
        write_json(path, card)


def _arguments(spec: ModelSpec) -> dict[str, Any]:
    """Return what timm's `create_model` takes beside the name."""
    arguments: dict[str, Any] = {"num_classes": spec.num_classes}
    if loads_with_timm(spec.architecture):
        arguments |= timm_arguments(spec.architecture, spec.input_size)
    return arguments


def _loading(spec: ModelSpec) -> list[str]:
    """Return the lines of Python that load the model, in the folder of the run."""
    if loads_with_timm(spec.architecture):
        return [
            "import json, timm, safetensors.torch",
            'card = json.load(open("model.json"))',
            'model = timm.create_model(card["architecture"], **card["arguments"]).eval()',
            'model.load_state_dict(safetensors.torch.load_file("model.safetensors"))',
        ]
    return [
        "from pathlib import Path",
        "from clipguard.models.spec import load, read_spec",
        'spec = read_spec(Path("model.safetensors"))',
        'model = load(Path("model.safetensors"), spec).network',
    ]
