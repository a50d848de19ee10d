"""A network as a folder that `local-dir:` loads: whole and tried, or not there at all."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from clipguard.clip.loading import CONFIG, FOLDER_PREFIX, WEIGHTS, load_clip
from clipguard.clip.model import Clip
from clipguard.errors import ClipguardError
from clipguard.runs.files import new_folder, write_json

ABOUT: Final = "cleaning.json"
"""What was done, from which guide, with which settings and losses."""

CLOSE: Final = 1e-4
"""Difference of two embeddings, in each number, from which they are not the same."""


def write_guide(clip: Clip, network: Any, folder: Path, about: dict[str, Any]) -> Clip:
    """Write `folder` for a network that is built as that of `clip`, and return it as it is loaded from there.

    Args:
        clip: whose config, preprocessing and tokenizer hold for the network as well.
        network: fine-tuned, in float32.
        folder: new or empty.
        about: JSON values for `cleaning.json`.

    Raises:
        ClipguardError: the folder is not empty, or what was written gives other embeddings.
    """
    from safetensors.torch import save_file

    with new_folder(folder) as part:
        write_json(part / CONFIG, config_of(clip))
        if hasattr(clip.tokenizer, "save_pretrained"):
            clip.tokenizer.save_pretrained(str(part))
        state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
        save_file(state, part / WEIGHTS, metadata={"format": "pt"})
        loaded = load_clip(f"{FOLDER_PREFIX}{part}")
        _check_same(clip, network, loaded)
        write_json(part / ABOUT, {**about, "sha256": loaded.fingerprint})
    return load_clip(f"{FOLDER_PREFIX}{folder}")


def config_of(clip: Clip) -> dict[str, Any]:
    """Return the contents of `open_clip_config.json` by which open_clip builds the same model again."""
    settings = json.loads(clip.settings)
    if isinstance(settings, list):  # a built-in name: its config, and what its weights' tag says
        config, tag = settings
        settings = config | ({"quick_gelu": True} if tag.get("quick_gelu") else {})
    given = clip.preprocessing
    return {
        "model_cfg": settings,
        "preprocess_cfg": {
            "size": list(given.size),
            "mean": list(given.mean),
            "std": list(given.std),
            "interpolation": given.interpolation,
            "resize_mode": given.resize,
            "fill_color": given.fill,
        },
    }


def _check_same(clip: Clip, network: Any, loaded: Clip) -> None:
    tuned = replace(clip, network=network)
    crops = [np.full((*clip.preprocessing.size, 3), grey, np.uint8) for grey in (0, 90, 255)]
    images = [one.embed_crops(crops) for one in (tuned, loaded)]
    texts = [one.embed_texts(["a", "a photo of a dog"]) for one in (tuned, loaded)]
    if loaded.preprocessing != clip.preprocessing or not all(
        np.allclose(first, second, atol=CLOSE) for first, second in (images, texts)
    ):
        raise ClipguardError(
            f"guide {clip.name} cannot be written as a folder: what is read back gives other embeddings; "
            "give a guide that lies in a folder of open_clip's format, as local-dir:FOLDER"
        )
