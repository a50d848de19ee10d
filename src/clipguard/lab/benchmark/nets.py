"""Small nets of other families for 32-pixel images, to be named as `clipguard.lab.benchmark.nets:small_vgg`.

timm's own configurations are made for 224 pixels: a VGG's head alone has 100 million weights, a vision
transformer refuses other sizes, and a MobileNet shrinks 32 pixels to one.
"""

import timm
from torch import nn


def small_vgg(num_classes: int) -> nn.Module:
    """Return VGG's plain stack of six 3x3 convolutions at half width, with BatchNorm and a linear head."""
    layers: list[nn.Module] = []
    channels = 3
    for width, pooled in ((32, True), (64, True), (128, False), (128, True), (256, False), (256, True)):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pooled else []
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def small_mobilenet(num_classes: int) -> nn.Module:
    """Return MobileNetV2 at half width whose last stages dilate instead of striding."""
    made: nn.Module = timm.create_model(
        "mobilenetv2_050", pretrained=False, num_classes=num_classes, output_stride=8
    )
    return made


def small_vit(num_classes: int) -> nn.Module:
    """Return a vision transformer for 32-pixel images: patches of 4, six layers of width 96."""
    made: nn.Module = timm.create_model(
        "vit_tiny_patch16_224",
        pretrained=False,
        num_classes=num_classes,
        img_size=32,
        patch_size=4,
        embed_dim=96,
        depth=6,
        num_heads=3,
    )
    return made
