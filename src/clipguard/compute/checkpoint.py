"""How far a training has come, in one file: a killed one goes on at its last whole epoch, to the same bits.

Randomness needs no place in it: every epoch draws from a seed of its own.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from clipguard.runs import replacing

_DENSE = torch.contiguous_format

Progress = list[tuple[float, float]]
"""Mean loss and seconds so far of each finished epoch."""


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, done: Progress) -> None:
    """Write `path` (safetensors), all or nothing: weights, what the optimiser remembers, finished epochs."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    for number, memory in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{name}": value for name, value in memory.items()}
    tensors["epochs"] = torch.tensor(done, dtype=torch.float64)
    # Copies, since safetensors refuses tensors that share memory, as tied weights do.
    apart = {name: value.detach().cpu().clone(memory_format=_DENSE) for name, value in tensors.items()}
    with replacing(path) as part:
        part.write_bytes(save(apart))


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Return the finished epochs, with model and optimiser as they were after the last of them.

    Without a checkpoint, or with a damaged one, nothing is changed and no epoch is finished.
    """
    try:
        tensors = load_file(path)
    except (FileNotFoundError, SafetensorError):
        return []
    epochs: list[list[float]] = tensors.pop("epochs").tolist()
    model.load_state_dict(_below(tensors, "model/"))
    memory: dict[int, dict[str, Tensor]] = {}
    for name, value in _below(tensors, "optimizer/").items():
        number, _, kind = name.partition("/")
        memory.setdefault(int(number), {})[kind] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": memory, "param_groups": groups})
    return [(loss, seconds) for loss, seconds in epochs]


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
