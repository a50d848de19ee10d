"""Random changes of images that defences make beside crops and flips, a batch at a time on any device."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from clipguard.models.spec import Normalized

ImageChange = Callable[[UInt8[Tensor, "b 3 h w"]], UInt8[Tensor, "b 3 h w"]]
"""Returns a changed copy of a batch."""


@contextmanager
def changed_inputs(model: Normalized, change: ImageChange) -> Iterator[None]:
    """Give the model changed images inside the block, whoever calls it."""

    def before(_: nn.Module, given: tuple[Any, ...]) -> tuple[Tensor]:
        return (change(given[0]),)

    hook = model.register_forward_pre_hook(before)
    try:
        yield
    finally:
        hook.remove()


def cutout(
    batch: UInt8[Tensor, "b 3 h w"], side: int, generator: torch.Generator
) -> UInt8[Tensor, "b 3 h w"]:
    """Return the batch with one black square an image (DeVries and Taylor 2017, "Cutout").

    The square's centre is any pixel, so that parts of it may lie outside.

    Args:
        batch: images.
        side: of the square, in pixels.
        generator: the processor's, wherever the batch lies.
    """
    b, _, h, w = batch.shape
    top = torch.randint(h, (b, 1), generator=generator) - side // 2
    left = torch.randint(w, (b, 1), generator=generator) - side // 2
    rows, columns = torch.arange(h), torch.arange(w)
    of_rows, of_columns = (rows >= top) & (rows < top + side), (columns >= left) & (columns < left + side)
    hole = of_rows[:, None, :, None] & of_columns[:, None, None, :]
    return batch.masked_fill(hole.to(batch.device), 0)


def rotated_and_shifted(
    batch: UInt8[Tensor, "b 3 h w"], degrees: float, shift: float, generator: torch.Generator
) -> UInt8[Tensor, "b 3 h w"]:
    """Return the batch, each image rotated about its centre and then shifted; black comes in from outside.

    Pixels are taken from the nearest place, not interpolated.

    Args:
        batch: images.
        degrees: largest rotation either way.
        shift: largest shift either way, as a share of height and width.
        generator: the processor's, wherever the batch lies.
    """
    b, _, h, w = batch.shape
    angle, down, right = 2 * torch.rand(3, b, 1, 1, generator=generator) - 1
    turn = torch.deg2rad(degrees * angle)
    y = torch.arange(h)[:, None] - (h - 1) / 2 - (shift * h * down).round()
    x = torch.arange(w)[None, :] - (w - 1) / 2 - (shift * w * right).round()
    # Where each pixel comes from: rotated back.
    row = (turn.cos() * y + turn.sin() * x + (h - 1) / 2).round().long()
    column = (turn.cos() * x - turn.sin() * y + (w - 1) / 2).round().long()
    outside = (row < 0) | (row >= h) | (column < 0) | (column >= w)
    places = (row.clamp(0, h - 1) * w + column.clamp(0, w - 1)).flatten(1)
    index = places[:, None].expand(-1, 3, -1).to(batch.device)
    moved = batch.flatten(2).gather(2, index).view_as(batch)
    return moved.masked_fill(outside[:, None].to(batch.device), 0)
