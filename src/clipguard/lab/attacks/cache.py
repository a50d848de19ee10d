"""What an attack learned, kept between runs: one file, named by everything that went into it."""

import hashlib
import json
import math
from collections.abc import Callable, Collection
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clipguard.compute.device import arithmetic
from clipguard.errors import ClipguardError, reason_of
from clipguard.runs.files import replacing
from clipguard.seeds import Seed
from clipguard.types import ImageSet

Tensors = dict[str, Tensor]

VERSION: Final = 2
"""To be raised whenever the training of every attack changes, so that no fit of older code is read."""


def version_of(attack: Any) -> int | str:
    """Return the version of the code that fits an attack: `VERSION` and the attack's own, if it has one."""
    own = getattr(attack, "fit_version", 0)
    return f"{VERSION}.{own}" if own else VERSION


def key_of(attack: Any, data: ImageSet, seed: Seed, without: Collection[str] = ("rate",)) -> str:
    """Return the name of what an attack (a dataclass) learns from `data`: a hash of all three.

    Args:
        attack: with its settings; what it has learned already does not count.
        data: the clean data set.
        seed: of the training.
        without: settings on which the training does not depend, so that they share one fit.
    """
    name = type(attack).__name__
    own = [field.name for field in fields(attack) if field.compare and field.name not in without]
    parts = {
        "version": version_of(attack),
        "attack": name,
        "settings": {setting: getattr(attack, setting) for setting in own},
        "data": data.fingerprint,
        "seed": asdict(seed),
        **arithmetic(),
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return f"{name.lower()}-{digest[:24]}"


def cached(key: str, cache: Path | None, train: Callable[[], Tensors]) -> Tensors:
    """Return what `train` returns, without training where the folder `cache` holds it already.

    Raises:
        ClipguardError: the file in the cache is damaged, or the training diverged.
    """
    path = None if cache is None else cache / f"{key}.safetensors"
    if path is not None and path.exists():
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise ClipguardError(
                f"cached fit {path} cannot be read ({reason_of(error)}): delete it and run again"
            ) from error
    if path is not None:
        # Before the training: a folder that cannot be written to must not cost it.
        path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in train().items()}
    for name, value in tensors.items():
        if value.is_floating_point() and not math.isfinite(float(value.abs().sum())):
            raise ClipguardError(
                f"the training of the attack diverged (NaN or Inf in {name}): choose another seed"
            )
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
            f"the cached fit does not hold the net {name!r}: delete its file and run again"
        ) from error
    net.requires_grad_(False).eval()
