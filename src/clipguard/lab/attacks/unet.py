"""The small U-Net of several attacks: image to image, or to a mask, of any size."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def _layer(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    # Normalised within each image: what is made of an image must not depend on the rest of its batch.
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(4, outputs), nn.ReLU(inplace=True)
    )


class UNet(nn.Module):
    """Image to image at one size, after Ronneberger et al. 2015: two halvings, with skips; `width` from 4."""

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        self.enter = _layer(inputs, width)
        self.down_half = nn.Sequential(_layer(width, 2 * width, 2), _layer(2 * width, 2 * width))
        self.down_quarter = nn.Sequential(_layer(2 * width, 4 * width, 2), _layer(4 * width, 4 * width))
        self.up_half = _layer(6 * width, 2 * width)
        self.up_full = _layer(3 * width, width)
        self.leave = nn.Conv2d(width, outputs, 1)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        """Return unbounded values; any size fits, since the edges are repeated up to a multiple of four."""
        h, w = x.shape[2:]
        padded = F.pad(x, (0, -w % 4, 0, -h % 4), mode="replicate")
        full = self.enter(padded.contiguous(memory_format=torch.channels_last))
        half = self.down_half(full)
        deep = F.interpolate(self.down_quarter(half), scale_factor=2)
        half = F.interpolate(self.up_half(torch.cat((deep, half), 1)), scale_factor=2)
        out: Tensor = self.leave(self.up_full(torch.cat((half, full), 1)))
        return out[:, :, :h, :w]
