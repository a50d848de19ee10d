"""A repaired model as ONNX: uint8 RGB images in, logits out; normalisation is part of the graph."""

import io
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import torch

from clipguard.errors import ClipguardError, reason_of
from clipguard.models.spec import load, read_spec
from clipguard.runs import replacing

ONNX: Final = "model.onnx"
INPUT: Final = "images"
OUTPUT: Final = "logits"


def check_exporter() -> None:
    """Return nothing where models can be written as ONNX.

    Raises:
        ClipguardError: the packages that do it are not installed.
    """
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise ClipguardError(f"{missing[0]} is not installed: pip install clipguard[onnx]")


def write_onnx(run: Path, file: Path) -> None:
    """Write model.safetensors of a run as ONNX, for any number of images of the model's size.

    Raises:
        ClipguardError: no model, one whose code is not clipguard's or timm's, or no exporter installed.
    """
    check_exporter()
    weights = run / "model.safetensors"
    if not weights.is_file():
        raise ClipguardError(f"run folder {run} has no model.safetensors: run clipguard defend")
    spec = read_spec(weights)
    if spec is None:
        raise ClipguardError(f"{weights} was not written by clipguard: run clipguard defend")
    model = load(weights, spec)
    images = torch.zeros((2, 3, *spec.input_size), dtype=torch.uint8)
    with replacing(file) as part, redirect_stdout(io.StringIO()):
        try:
            torch.onnx.export(
                model,
                (images,),
                part,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes={INPUT: {0: torch.export.Dim("n")}},
                external_data=False,
            )
        except Exception as error:  # the exporter raises what it likes
            raise ClipguardError(
                f"{spec.architecture} cannot be written as ONNX: {reason_of(error)}; use model.safetensors"
            ) from error
