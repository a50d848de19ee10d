"""Where a net's blocks end, whatever it is built of, and the attention maps of what they give."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from clipguard.errors import ClipguardError
from clipguard.models.spec import Normalized

THIRDS: Final = 3
"""Blocks of a net that is one chain of layers, at equal distances."""


def block_names(model: Normalized, image: UInt8[Tensor, "1 3 h w"]) -> tuple[str, ...]:
    """Return the names of the modules whose outputs are a net's block outputs, in the order of computation.

    A block is the last module with a convolution inside, at each resolution that feature maps have: the ends
    of a residual net's stages. A net with fewer than two such maps, as a transformer or a plain chain of
    layers, has three blocks: its longest chain of modules that give maps or tokens, cut into thirds.

    Args:
        model: any classifier; it is left in evaluation mode.
        image: one image of a size that the model takes.

    Raises:
        ClipguardError: it has neither.
    """
    shapes = _output_shapes(model, image)
    by_resolution: dict[tuple[int, ...], str] = {}
    for name, shape in shapes.items():
        if len(shape) == 4 and math.prod(shape[2:]) > 1 and _has_convolution(model.network, name):
            # Taken out first, so that the names stand in the order of their last call.
            by_resolution.pop(shape[2:], None)
            by_resolution[shape[2:]] = name
    if len(by_resolution) >= 2:
        return tuple(by_resolution.values())
    chain = max(_chains(model.network, shapes), key=len, default=())
    if not chain:
        raise ClipguardError(
            "attention distillation finds no blocks in this model: give another defence, or a net whose "
            "layers stand in a Sequential or ModuleList"
        )
    ends = (math.ceil(len(chain) * part / THIRDS) - 1 for part in range(1, THIRDS + 1))
    return tuple(dict.fromkeys(chain[end] for end in ends))


def _output_shapes(model: Normalized, image: UInt8[Tensor, "1 3 h w"]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each inner module's last output that is a map or tokens, in order of the calls."""
    shapes: dict[str, tuple[int, ...]] = {}
    names = {module: name for name, module in model.network.named_modules() if name}

    def note(module: nn.Module, _: Any, output: object) -> None:
        shapes.pop(names[module], None)
        if isinstance(output, Tensor) and output.ndim in (3, 4) and output.is_floating_point():
            shapes[names[module]] = tuple(output.shape)

    model.eval()
    with ExitStack() as hooks, torch.inference_mode():
        for module in names:
            hooks.callback(module.register_forward_hook(note).remove)
        model(image.to(model.mean.device))
    return shapes


def _has_convolution(network: nn.Module, name: str) -> bool:
    module = network.get_submodule(name)
    return any(isinstance(inner, nn.Conv2d) for inner in module.modules() if inner is not module)


def _chains(network: nn.Module, shapes: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, ...]]:
    """Return the names of the items of each chain of modules that give maps or tokens."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Sequential | nn.ModuleList):
            items = (f"{name}.{key}" if name else key for key, _ in module.named_children())
            yield tuple(item for item in items if item in shapes)


@contextmanager
def outputs_of(model: Normalized, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Give a dictionary that holds the last outputs of the modules of those names, with their gradients."""
    outputs: dict[str, Tensor] = {}

    def noting(name: str) -> Any:
        def note(_: nn.Module, __: Any, output: Tensor) -> None:
            outputs[name] = output

        return note

    with ExitStack() as hooks:
        for name in names:
            hooks.callback(model.network.get_submodule(name).register_forward_hook(noting(name)).remove)
        yield outputs


def attention_map(output: Float[Tensor, "b *_"], height: int, width: int) -> Float[Tensor, "b places"]:
    """Return where a block attends to: the sum of squares over channels, of length 1 for each image.

    Args:
        output: maps [b, c, y, x] or [b, y, x, c], or tokens [b, t, c].
        height: of the image, in any unit; which axes of a map are places is told by its aspect ratio.
        width: of the image.
    """
    axis = -1 if output.ndim == 3 or _channels_last(tuple(output.shape), height, width) else 1
    energy = output.float().square().sum(axis).flatten(1)
    return nn.functional.normalize(energy, dim=1)


def _channels_last(shape: tuple[int, ...], height: int, width: int) -> bool:
    first, second, third = shape[1:]
    return first * width == second * height and second * width != third * height
