"""Networks of this package: PreActResNet-18 for small images, a shallow net, and BackdoorBench's net."""

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

NORMALISATIONS: Final = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "gtsrb": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Mean and deviation by which BackdoorBench normalises images in 0..1, by the name of the data set."""


class PreActBlock(nn.Module):
    """Pre-activation basic block (He et al. 2016, "Identity Mappings in Deep Residual Networks")."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        narrow = stride == 1 and inputs == outputs
        self.shortcut: nn.Module | None = None if narrow else nn.Conv2d(inputs, outputs, 1, bias=False)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output; the projection shortcut reads the activated input."""
        out: Tensor = F.relu(self.bn1(x))
        # Strided by slicing: below 16 channels oneDNN's strided 1x1 backward corrupts memory (its #6035).
        skip = x if self.shortcut is None else self.shortcut(out[:, :, :: self.stride, :: self.stride])
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        summed: Tensor = out.add_(skip)
        return summed


class PreActResNet18(nn.Module):
    """PreActResNet-18 for small images; `width` channels in the first stage (64 in the literature)."""

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        stages = []
        channels = width
        for stage in range(4):
            outputs = width * 2**stage
            stages.append(PreActBlock(channels, outputs, 1 if stage == 0 else 2))
            stages.append(PreActBlock(outputs, outputs, 1))
            channels = outputs
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Return logits; global average pooling makes any input size fit."""
        x = F.relu(self.norm(self.stages(self.stem(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class ShallowNet(nn.Module):
    """Three convolutions and both poolings: learns a trigger, local or global, long before it learns objects.

    The maximum keeps a 3x3 patch at full strength, where an average over the image would dilute it.
    """

    def __init__(self, num_classes: int, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((3, width, 1), (width, width, 2), (width, 2 * width, 2)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Return logits."""
        x = self.features(x)
        logits: Tensor = self.head(torch.cat((x.mean((2, 3)), x.amax((2, 3))), 1))
        return logits


def _backdoorbench_layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Return a stage of two blocks, whose projection, if any, stands in a sequence of its own."""
    blocks = PreActBlock(inputs, outputs, stride), PreActBlock(outputs, outputs, 1)
    for block in blocks:
        if block.shortcut is not None:
            block.shortcut = nn.Sequential(block.shortcut)
    return nn.Sequential(*blocks)


class BackdoorBenchResNet(nn.Module):
    """PreActResNet-18 without a normalisation before the head: its weights have the names of BackdoorBench.

    A factory for the architecture, so that a model of BackdoorBench's records can be repaired.
    """

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.layer1 = _backdoorbench_layer(width, width, 1)
        self.layer2 = _backdoorbench_layer(width, 2 * width, 2)
        self.layer3 = _backdoorbench_layer(2 * width, 4 * width, 2)
        self.layer4 = _backdoorbench_layer(4 * width, 8 * width, 2)
        self.linear = nn.Linear(8 * width, num_classes)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Return logits; global average pooling makes any input size fit."""
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits
