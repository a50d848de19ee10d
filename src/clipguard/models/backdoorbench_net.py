"""The net of BackdoorBench's records, so that their weights can be cured: a factory for --architecture."""

from typing import Final

from jaxtyping import Float
from torch import Tensor, nn

from clipguard.models.spec import PreActBlock

NORMALISATIONS: Final = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "gtsrb": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Mean and deviation that BackdoorBench scales images in 0..1 by, for its data sets of three channels."""


def _block(inputs: int, outputs: int, stride: int) -> PreActBlock:
    """Return our block with its projection where those records have it, in a sequence of its own."""
    block = PreActBlock(inputs, outputs, stride)
    if block.shortcut is not None:
        block.shortcut = nn.Sequential(block.shortcut)
    return block


class BackdoorBenchResNet(nn.Module):
    """PreActResNet-18 without a normalisation before the head, its weights under BackdoorBench's names."""

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.layer1 = nn.Sequential(_block(width, width, 1), _block(width, width, 1))
        self.layer2 = nn.Sequential(_block(width, 2 * width, 2), _block(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(_block(2 * width, 4 * width, 2), _block(4 * width, 4 * width, 1))
        self.layer4 = nn.Sequential(_block(4 * width, 8 * width, 2), _block(8 * width, 8 * width, 1))
        self.linear = nn.Linear(8 * width, num_classes)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Return logits; global average pooling makes any input size fit."""
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def preactresnet18(num_classes: int) -> BackdoorBenchResNet:
    """Return the net that `model_name` preactresnet18 of a record means."""
    return BackdoorBenchResNet(num_classes)
