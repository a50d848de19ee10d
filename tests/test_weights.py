"""models.weights: what a weights file claims is read from its header, and nothing waits for a pipe."""

import os

import pytest
import torch
from safetensors.torch import save_file

from clipguard.errors import ClipguardError
from clipguard.models import weights


def test_shapes_texts_and_tensors_are_those_that_were_saved(tmp_path):
    saved = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}
    save_file(saved, tmp_path / "m", metadata={"who": "me"})
    assert weights.shapes(tmp_path / "m") == {"a": (2, 3), "b": (2,)}
    assert weights.metadata(tmp_path / "m") == {"who": "me"}
    tensors = weights.state(tmp_path / "m")
    assert all(torch.equal(tensors[name], value) for name, value in saved.items())


@pytest.mark.parametrize("read", [weights.shapes, weights.metadata, weights.state])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "m")
    with pytest.raises(ClipguardError, match="no regular file"):
        read(tmp_path / "m")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_half_precision_is_looked_through_for_nan_and_inf_too(tmp_path, value):
    save_file({"a": torch.tensor([1, value], dtype=torch.bfloat16)}, tmp_path / "m")
    with pytest.raises(ClipguardError, match="NaN or Inf weights in 'a'"):
        weights.state(tmp_path / "m")
