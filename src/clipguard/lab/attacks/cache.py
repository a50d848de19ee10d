"""What a helper net has learnt, kept between runs: one file, named by everything that went into it."""

import hashlib
import json
import math
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clipguard.errors import ClipguardError
from clipguard.runs.files import replacing
from clipguard.seeds import Seed
from clipguard.types import ImageSet

Tensors = dict[str, Tensor]

_VERSION: Final = 1
"""To be raised whenever a helper's training changes, so that what older code has learnt is not used."""


def key_of(recipe: Any, data: ImageSet, seed: Seed, without: Collection[str] = ("rate",)) -> str:
    """Return the name of what a recipe (a dataclass) learns from `data`: a hash of all three.

    Args:
        recipe: the attack.
        data: the clean data set.
        seed: of the training.
        without: fields of the recipe on which the helper does not depend, so that they share one helper.
    """
    name = type(recipe).__name__
    fields = {field: value for field, value in asdict(recipe).items() if field not in without}
    parts = [_VERSION, name, fields, data.fingerprint, seed.root, list(seed.path)]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return f"{name.lower()}-{digest[:24]}"


def learnt(key: str, cache: Path | None, train: Callable[[], Tensors]) -> Tensors:
    """Return what `train` returns, without training where the folder `cache` holds it already.

    Raises:
        ClipguardError: the file in the cache is damaged, or the training diverged.
    """
    path = None if cache is None else cache / f"{key}.safetensors"
    if path is not None and path.exists():
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            line = " ".join(str(error).split())
            raise ClipguardError(f"helper {path} cannot be read ({line}): delete it and run again") from error
    if path is not None:
        # Before the training: a folder that cannot be written to must not cost it.
        path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in train().items()}
    for name, value in tensors.items():
        if value.is_floating_point() and not math.isfinite(float(value.abs().sum())):
            raise ClipguardError(f"the helper net diverged (NaN or Inf in {name}): choose another seed")
    if path is not None:
        with replacing(path) as part:
            save_file(tensors, part)
    return tensors


def state_of(**nets: nn.Module) -> Tensors:
    """Return the state of several nets, each entry under its net's name."""
    return {f"{name}.{key}": value for name, net in nets.items() for key, value in net.state_dict().items()}


def restore(net: nn.Module, name: str, tensors: Tensors) -> None:
    """Give `net` the state that `state_of` has put under `name`, for use only: evaluation, no gradients.

    Raises:
        ClipguardError: the tensors are those of another net.
    """
    prefix = name + "."
    state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise ClipguardError(
            f"the cached helper does not hold the net {name!r}: delete its file and run again"
        ) from error
    net.requires_grad_(False).eval()
