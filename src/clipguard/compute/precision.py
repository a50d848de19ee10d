"""Which large trainings the processor does in bfloat16: those that gain by it and that it computes right."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import nn

from clipguard.compute.device import Device

_KNOWN: Final = ("torch", "timm", "clipguard")
"""Packages whose layers compute in bfloat16; of a user's own layers nobody knows."""

_DECIDED: WeakKeyDictionary[nn.Module, dict[tuple[int, int], bool]] = WeakKeyDictionary()


def training_block(device: Device, model: nn.Module, size: tuple[int, int]) -> AbstractContextManager[None]:
    """Return a block in which a step of a large training on images of a size computes.

    Small nets of a scan take no part, so that a scan gives the same on every processor.
    """
    if device.kind == "cuda":
        return device.autocast()
    if device.trained_in == "float32":
        return nullcontext()
    decided = _DECIDED.setdefault(model, {})
    if size not in decided:
        decided[size] = gains_by_bfloat16(model, size)
    block: AbstractContextManager[None] = torch.autocast("cpu", torch.bfloat16, enabled=decided[size])
    return block


def gains_by_bfloat16(model: nn.Module, size: tuple[int, int]) -> bool:
    """Return whether a training takes less time in bfloat16 where the processor multiplies fast in it.

    Images a second on one such core (AMD, AVX-512 BF16), float32 and bfloat16: PreActResNet18 of width 16 641
    and 969, of width 64 54 and 102; at 224 pixels ResNet-18 17 and 34, ViT-Tiny 12 and 25. Convolutions by
    groups lose: EfficientNet-Lite1 207 and 118. On an Intel core with these instructions and without AMX all
    lose: width 16 322 and 227, width 64 23 and 17, beside other work.
    """
    known = all(type(layer).__module__.partition(".")[0] in _KNOWN for layer in model.modules())
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    return known and all(layer.groups == 1 for layer in convolutions) and not _strides_over_one(model, size)


def _strides_over_one(model: nn.Module, size: tuple[int, int]) -> bool:
    """Return whether a convolution with a stride is given maps of a single value.

    There, torch 2.14 with oneDNN gives weights a gradient of what lay in memory; of 1,296 other shapes of
    convolutions, all gradients agree with those of float32.
    """
    single: list[bool] = []

    def note(layer: nn.Conv2d, inputs: tuple[Any, ...]) -> None:
        single.append(max(layer.stride) > 1 and min(inputs[0].shape[-2:]) == 1)

    hooks = [
        layer.register_forward_pre_hook(note) for layer in model.modules() if isinstance(layer, nn.Conv2d)
    ]
    trains = model.training
    try:
        model.eval()
        first = next(model.parameters())
        with torch.no_grad():
            model(torch.zeros(1, 3, *size, dtype=torch.uint8, device=first.device))
    finally:
        model.train(trains)
        for hook in hooks:
            hook.remove()
    return any(single)
