"""A guide's folder, which may come from a stranger, looked at before open_clip builds what it says."""

import logging
from pathlib import Path
from typing import Any, Final

from clipguard.errors import ClipguardError
from clipguard.models import weights
from clipguard.safety.limits import Limits, parse_json, read_bounded

WEIGHTS: Final = "open_clip_model.safetensors"
CONFIG: Final = "open_clip_config.json"
FOLDER_PREFIX: Final = "local-dir:"
CONVERT: Final = (
    "convert it where you trust it: safetensors.torch.save_file(state_dict, "
    f"'{WEIGHTS}', metadata={{'format': 'pt'}}) with the tensors of model.state_dict()"
)

LARGEST: Final = {
    "vocab_size": 1_000_000,
    "size": 2048,
    "layers": 256,
    "heads": 256,
    "width": 65_536,
    "": 1_000_000,
}
"""Numbers of a config that no model in use comes near, by a part of their name: the first that fits holds."""


def line(error: BaseException) -> str:
    """Return what an error says, in one line of bounded length."""
    text = " ".join(str(error)[:5000].split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + "..."


def folder_weights(folder: Path) -> Path:
    """Return the weights file of a guide's folder.

    Raises:
        ClipguardError: no such folder, or a file is missing.
    """
    if not folder.is_dir():
        raise ClipguardError(
            f"guide folder {folder} does not exist: give local-dir:FOLDER with {CONFIG} and {WEIGHTS}"
        )
    if not (folder / CONFIG).is_file():
        raise ClipguardError(
            f"guide folder {folder} has no {CONFIG}: without it the preprocessing would be a guess"
        )
    found = folder / WEIGHTS
    if not found.is_file():
        others = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".ckpt"})
        said = f"; {others[0]} is a pickle and is never loaded, {CONVERT}" if others else ""
        raise ClipguardError(f"guide folder {folder} has no {WEIGHTS}{said}")
    return found


def read_config(name: str, folder: Path) -> dict[str, Any]:
    """Return `model_cfg` of a guide's folder.

    Raises:
        ClipguardError: it is damaged, absurdly large, or would fetch or run what is not in the folder.
    """
    try:
        whole = parse_json(read_bounded(folder / CONFIG, Limits().json_bytes), Limits())
        config = whole["model_cfg"]
        config["text_cfg"].get("hf_tokenizer_name")
        vision = config.get("vision_cfg") or {}
        outside = vision.get("timm_model_pretrained") or ":" in str(vision.get("timm_model_name"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ClipguardError(
            f"guide {name}: {CONFIG} is damaged or lacks model_cfg and its text_cfg: {line(error)}"
        ) from error
    if outside:
        raise ClipguardError(f"guide {name}: {CONFIG} wants other weights than those beside it: correct it")
    _check_numbers(name, whole)
    found: dict[str, Any] = config
    return found


def _check_numbers(name: str, whole: dict[str, Any]) -> None:
    # By a list of what is left: nested values could be deeper than calls may be.
    left: list[tuple[str, Any]] = [("", whole)]
    while left:
        key, value = left.pop()
        if "trust_remote_code" in key:
            raise ClipguardError(f"guide {name}: {CONFIG} wants code to run ({key[:50]}): do not use it")
        if isinstance(value, dict):
            left += value.items()
        elif isinstance(value, list):
            left += [(key, content) for content in value]
        elif isinstance(value, int | float):
            most = next(number for part, number in LARGEST.items() if part in key)
            if not abs(value) <= most:
                raise ClipguardError(
                    f"guide {name}: {CONFIG} has {key[:50]} = {str(value)[:20]}, which is more than {most}"
                )


def check_weights(name: str, place: str, found: Path) -> None:
    """Return nothing if the model of the folder `place` is no larger than its weights.

    A config of some hundred bytes could otherwise have any amount of memory filled before the weights,
    which do not fit, are looked at.

    Raises:
        ClipguardError: it is larger, or cannot be built.
    """
    import open_clip
    import torch

    # For this one call: that no weights are loaded is meant.
    logging.disable(logging.WARNING)
    try:
        with torch.device("meta"):
            skeleton = open_clip.create_model(place, load_weights=False, device="meta")
    except Exception as error:  # A foreign folder can make open_clip and timm raise nearly anything.
        raise ClipguardError(f"guide {name} cannot be built: {line(error)}") from error
    finally:
        logging.disable(logging.NOTSET)
    wanted = sum(value.numel() for value in skeleton.state_dict().values())
    held = sum(torch.Size(shape).numel() for shape in weights.shapes(found).values())
    if wanted > 2 * held:
        raise ClipguardError(
            f"guide {name} cannot be built: {CONFIG} describes {wanted} weights, {WEIGHTS} holds {held}"
        )
