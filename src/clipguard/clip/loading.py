"""From the name of a CLIP to the loaded model: built-in names of open_clip, the hub, local folders.

Weights are safetensors or nothing; nothing here unpickles. open_clip by itself reads `.bin` and `.pt`
checkpoints with `torch.load(weights_only=True)`: still an unpickler, with a list of what it lets through.
Every built-in tag, `openai` included, has a hub repository, and all but ViTamin's follow open_clip's naming,
which has a safetensors file. So the file is chosen and fetched here, and open_clip is given only its path.

A folder may come from a stranger: its config is measured before open_clip builds the model that it describes.
"""

import importlib.util
import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from clipguard.clip.model import Clip
from clipguard.errors import ClipguardError, reason_of
from clipguard.models import weights
from clipguard.safety.limits import Limits, parse_json, read_bounded
from clipguard.safety.network import PATIENCE, answers
from clipguard.types import Preprocessing

# Read when huggingface_hub is imported: a download says which file it wants and nothing about this machine.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

DEFAULT_MODEL: Final = "ViT-B-32"
DEFAULT_PRETRAINED: Final = "laion2b_s34b_b79k"
HUB_PREFIX: Final = "hf-hub:"
FOLDER_PREFIX: Final = "local-dir:"
WEIGHTS: Final = "open_clip_model.safetensors"
CONFIG: Final = "open_clip_config.json"

_CONVERT: Final = (
    "convert it where you trust it: safetensors.torch.save_file(state_dict, "
    f"'{WEIGHTS}', metadata={{'format': 'pt'}}) with the tensors of model.state_dict()"
)
_NAMES: Final = (
    "give mini, a name of open_clip such as ViT-B-32/laion2b_s34b_b79k, hf-hub:ORG/NAME or local-dir:FOLDER"
)
_PICKLES: Final = frozenset({".bin", ".pt", ".pth", ".ckpt"})
_CHECKPOINTS: Final = _PICKLES | {".safetensors", ".npz"}

_LARGEST: Final = {
    "vocab_size": 1_000_000,
    "size": 2048,
    "layers": 256,
    "heads": 256,
    "width": 65_536,
    "": 1_000_000,
}
"""Bounds on the numbers of a config, by a part of their name: the first that fits holds. No model is near."""


def load_clip(model: str = DEFAULT_MODEL, pretrained: str = DEFAULT_PRETRAINED) -> Clip:
    """Return the model of a built-in name and its weights' tag, `hf-hub:ORG/NAME` or `local-dir:FOLDER`.

    Args:
        model: a bare checkpoint path is refused, because open_clip would have to guess the preprocessing.
        pretrained: read for built-in names only.

    Raises:
        ClipguardError: unknown name, weights that cannot be had, or files that do not fit together.
    """
    if model.startswith(FOLDER_PREFIX):
        return _load_folder(model, Path(model.removeprefix(FOLDER_PREFIX)).expanduser(), FOLDER_PREFIX)
    if model.startswith(HUB_PREFIX):
        repository = model.removeprefix(HUB_PREFIX)
        for file in (CONFIG, WEIGHTS):
            _fetch(model, repository, file)
        # Looked up again: if one of the two came from an older cache, the download has moved the snapshot on.
        return _load_folder(model, _fetch(model, repository, CONFIG).parent, HUB_PREFIX)
    return _load_built_in(model, pretrained)


def cached_weights(model: str = DEFAULT_MODEL, pretrained: str = DEFAULT_PRETRAINED) -> Path | None:
    """Return the weights file that `load_clip` would open without a network, None if it would need one.

    Raises:
        ClipguardError: unknown name, or a folder that lacks a file.
    """
    if model.startswith(FOLDER_PREFIX):
        return _folder_weights(Path(model.removeprefix(FOLDER_PREFIX)).expanduser())
    if model.startswith(HUB_PREFIX):
        cached = [_cached(model.removeprefix(HUB_PREFIX), file) for file in (CONFIG, WEIGHTS)]
        return cached[1] if cached[0] else None
    return _cached(*_on_the_hub(model, pretrained)[:2])


def _load_built_in(model: str, pretrained: str) -> Clip:
    import open_clip

    name, (repository, file, tag) = f"{model}/{pretrained}", _on_the_hub(model, pretrained)
    path = _fetch(name, repository, file)
    config = open_clip.get_model_config(model)
    _require_text_parts(name, config, local_tokenizer=False)
    # Given a path for weights, open_clip would guess: the tag's own preprocessing and activation go with it.
    return _open(
        name,
        path,
        model,
        model,
        json.dumps([config, tag], sort_keys=True, default=str),
        pretrained=str(path),
        force_quick_gelu=bool(tag.get("quick_gelu", False)),
        **{f"image_{key}": tag[key] for key in ("mean", "std", "interpolation", "resize_mode")},
    )


def _on_the_hub(model: str, pretrained: str) -> tuple[str, str, dict[str, Any]]:
    """Return repository and file of a built-in name's weights, and what open_clip says of them.

    Raises:
        ClipguardError: unknown name.
    """
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    if model not in open_clip.list_models():
        raise ClipguardError(f"guide {model!r} is unknown{_path_hint(model)}: {_NAMES}")
    tag = get_pretrained_cfg(model, pretrained)
    if not tag:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "none"
        raise ClipguardError(
            f"guide {model!r} has no weights {pretrained!r}{_path_hint(pretrained)}: "
            f"give {model}/TAG, TAG one of {known}"
        )
    repository, file = os.path.split(tag["hf_hub"])
    return repository, Path(file).with_suffix(".safetensors").name if file else WEIGHTS, tag


def _load_folder(name: str, folder: Path, kind: str) -> Clip:
    file = _folder_weights(folder)
    config = read_config(name, folder)
    own_tokenizer = not config["text_cfg"].get("hf_tokenizer_name")
    local_tokenizer = own_tokenizer or kind == FOLDER_PREFIX
    _require_text_parts(name, config, local_tokenizer=local_tokenizer)
    model = f"{FOLDER_PREFIX}{folder}"
    # A text tower of another package is built by that package, which may fetch it first.
    if not config["text_cfg"].get("hf_model_name"):
        check_weights(name, model, file)
    settings = json.dumps(config, sort_keys=True)
    return _open(name, file, model, model if local_tokenizer else name, settings)


def _open(name: str, file: Path, model: str, tokenizer: str, settings: str, **arguments: Any) -> Clip:
    import open_clip
    import torch

    try:
        with _root_logger_restored():
            network, _ = open_clip.create_model_from_pretrained(model, **arguments)
            preprocessing = _preprocessing(open_clip.get_model_preprocess_cfg(network))
            tokens = open_clip.get_tokenizer(tokenizer)
        network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        clip = Clip(name, file, network, preprocessing, tokens, settings)
        # Sizes, means and deviations that fit no image, or no text, fail here and not in the midst of a scan.
        clip.embed_images([np.zeros((8, 8, 3), np.uint8)])
        clip.embed_texts(["a"])
    except ClipguardError:
        raise
    except Exception as error:  # A foreign folder can make open_clip and timm raise nearly anything.
        raise ClipguardError(f"guide {name} cannot be built: {reason_of(error)}") from error
    return clip


def _preprocessing(config: dict[str, Any]) -> Preprocessing:
    """Return open_clip's evaluation transform of a config; where it says nothing, open_clip's defaults."""
    from open_clip.transform import PreprocessCfg

    given = PreprocessCfg(**config)
    size = (given.size, given.size) if isinstance(given.size, int) else tuple(given.size)
    # open_clip knows no other than bicubic beside it, nor beside bicubic for the shorter side of an oblong.
    oblong = given.resize_mode == "shortest" and size[0] != size[1]
    bilinear = given.interpolation == "bilinear" and not oblong
    return Preprocessing(
        size=size,
        resize=given.resize_mode,
        interpolation="bilinear" if bilinear else "bicubic",
        fill=given.fill_color,
        mean=tuple(given.mean),
        std=tuple(given.std),
    )


def _require_text_parts(name: str, config: dict[str, Any], *, local_tokenizer: bool) -> None:
    """Stop early where `transformers` is missing, or would wait long for a network that is not there."""
    text = config["text_cfg"]
    tower, tokenizer = text.get("hf_model_name"), text.get("hf_tokenizer_name")
    if (tower or tokenizer) and importlib.util.find_spec("transformers") is None:
        raise ClipguardError(f"guide {name} reads texts with another package: pip install transformers")
    for repository in (tower, None if local_tokenizer else tokenizer):
        if repository and _cached(repository, "config.json") is None:
            _require_network(name, repository, "config.json")


def _fetch(name: str, repository: str, file: str) -> Path:
    """Return the file from the hub's cache, or download it."""
    from huggingface_hub import errors, hf_hub_download

    cached = _cached(repository, file)
    if cached is not None:
        return cached
    _require_network(name, repository, file)
    try:
        return Path(hf_hub_download(repository, file))
    except errors.LocalEntryNotFoundError as error:
        raise _unreachable(name, repository) from error
    except errors.EntryNotFoundError as error:
        advice = (
            f"pickled weights are never loaded, {_CONVERT}" if file != CONFIG else "it is no open_clip model"
        )
        raise ClipguardError(f"guide {name}: hub repository {repository} has no {file}; {advice}") from error
    except (OSError, ValueError) as error:
        raise ClipguardError(
            f"guide {name}: {file} of {repository} cannot be fetched: {reason_of(error)}"
        ) from error


def _cached(repository: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(repository, file)
    except HFValidationError as error:
        raise ClipguardError(
            f"guide repository {repository!r} is no hub name: give hf-hub:ORG/NAME"
        ) from error
    return Path(cached) if isinstance(cached, str) else None


def _require_network(name: str, repository: str, file: str) -> None:
    """Ask the hub once before its client retries."""
    from huggingface_hub import hf_hub_url

    seconds = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or PATIENCE)
    if not answers(hf_hub_url(repository, file), seconds):
        raise _unreachable(name, repository)


def _unreachable(name: str, repository: str) -> ClipguardError:
    from huggingface_hub import constants

    return ClipguardError(
        f"guide {name}: its files are not on this machine and {constants.ENDPOINT} does not answer; "
        "use the guide mini (embedded) or local-dir:FOLDER, or copy a Hugging Face cache that holds "
        f"{repository} here and set HF_HOME to it (slow network: set HF_HUB_ETAG_TIMEOUT=30)"
    )


def _path_hint(text: str) -> str:
    """Return why a bare path is refused, if `text` is one."""
    if not (os.sep in text or Path(text).suffix in _CHECKPOINTS or Path(text).exists()):
        return ""
    return f" (a bare path is refused, its preprocessing would be a guess; {FOLDER_PREFIX}FOLDER holds both)"


def _folder_weights(folder: Path) -> Path:
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
    file = folder / WEIGHTS
    if not file.is_file():
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
        advice = f"; {pickles[0]} is a pickle and is never loaded, {_CONVERT}" if pickles else ""
        raise ClipguardError(f"guide folder {folder} has no {WEIGHTS}{advice}")
    return file


def read_config(name: str, folder: Path) -> dict[str, Any]:
    """Return `model_cfg` of a guide's folder.

    Raises:
        ClipguardError: it is damaged, far too large, or would fetch or run what is not in the folder.
    """
    try:
        whole = parse_json(read_bounded(folder / CONFIG, Limits().json_bytes), Limits())
        config = whole["model_cfg"]
        config["text_cfg"].get("hf_tokenizer_name")
        vision = config.get("vision_cfg") or {}
        outside = vision.get("timm_model_pretrained") or ":" in str(vision.get("timm_model_name"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ClipguardError(
            f"guide {name}: {CONFIG} is damaged or lacks model_cfg and its text_cfg: {reason_of(error)}"
        ) from error
    if outside:
        raise ClipguardError(f"guide {name}: {CONFIG} wants other weights than those beside it: correct it")
    _check_numbers(name, whole)
    model_config: dict[str, Any] = config
    return model_config


def _check_numbers(name: str, whole: dict[str, Any]) -> None:
    # A list of what is left instead of recursion: values may be nested deeper than calls can be.
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
            most = next(number for part, number in _LARGEST.items() if part in key)
            if not abs(value) <= most:
                raise ClipguardError(
                    f"guide {name}: {CONFIG} has {key[:50]} = {str(value)[:20]}, which is more than {most}"
                )


def check_weights(name: str, model: str, file: Path) -> None:
    """Check that the model of a folder, `local-dir:FOLDER`, is no larger than its weights in `file`.

    Otherwise a config of some hundred bytes could have any amount of memory filled before anybody sees that
    the weights do not fit.

    Raises:
        ClipguardError: it is larger, or cannot be built.
    """
    import open_clip
    import torch

    try:
        # open_clip warns that no weights are loaded, as intended here.
        with _root_logger_restored(silent=True), torch.device("meta"):
            skeleton = open_clip.create_model(model, load_weights=False, device="meta")
    except Exception as error:  # A foreign folder can make open_clip and timm raise nearly anything.
        raise ClipguardError(f"guide {name} cannot be built: {reason_of(error)}") from error
    described = sum(value.numel() for value in skeleton.state_dict().values())
    held = sum(torch.Size(shape).numel() for shape in weights.shapes(file).values())
    if described > 2 * held:
        raise ClipguardError(
            f"guide {name} cannot be built: {CONFIG} describes {described} weights, {WEIGHTS} holds {held}"
        )


@contextmanager
def _root_logger_restored(*, silent: bool = False) -> Iterator[None]:
    """Keep what open_clip does to the root logger, to which it writes, from outlasting the block.

    Args:
        silent: drop warnings, and less, that this thread writes to the root logger inside the block. Other
            threads, other loggers and all levels stay as they are.
    """
    root, thread = logging.getLogger(), threading.get_ident()
    # Without any handler, `logging.info` would give the root logger one for good.
    stand_in = None if root.handlers else logging.lastResort or logging.NullHandler()

    def passes(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno > logging.WARNING

    if stand_in is not None:
        root.addHandler(stand_in)
    if silent:
        root.addFilter(passes)
    try:
        yield
    finally:
        root.removeFilter(passes)
        if stand_in is not None:
            root.removeHandler(stand_in)
