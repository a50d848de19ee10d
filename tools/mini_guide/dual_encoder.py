"""The untrained dual encoder and the folder that open_clip loads it from."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from clipguard.clip.loading import CONFIG, WEIGHTS
from clipguard.seeds import Seed

DIMENSIONS = 384
MODEL_CONFIG: dict[str, Any] = {
    "embed_dim": DIMENSIONS,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 96,
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
    },
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 4},
}
PREPROCESS_CONFIG = {
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def new_encoder(seed: Seed) -> open_clip.CustomTextCLIP:
    """Return the model with random weights, its image tower channels-last."""
    config = {key: value for key, value in deepcopy(MODEL_CONFIG).items() if key != "custom_text"}
    with seed.torch_global():
        model = open_clip.CustomTextCLIP(**config)
    model.visual.to(memory_format=torch.channels_last)
    return model


def pack(model: open_clip.CustomTextCLIP, folder: Path) -> None:
    """Write the model as a `local-dir:` folder, float16 but for scalars; the weights come last."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": PREPROCESS_CONFIG}
    (folder / CONFIG).write_text(json.dumps(config, indent=1))
    state = {
        name: (value.half() if value.is_floating_point() and value.ndim else value).detach().contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
