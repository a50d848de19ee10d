"""open_clip behind one class: images and texts to embeddings. Without a network once the weights are there.

Weights are safetensors or nothing. open_clip reads `.bin` and `.pt` checkpoints with
`torch.load(weights_only=True)`, which is still an unpickler, if one with a list of what it lets through.
Every built-in tag, `openai` included, has a hub repository, and all but ViTamin's follow open_clip's naming,
which has a safetensors file. So the file is chosen and fetched here, and open_clip only ever sees its path.
"""

import functools
import hashlib
import importlib.util
import json
import os
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from clipguard.clip.loading import (
    CONFIG,
    CONVERT,
    FOLDER_PREFIX,
    WEIGHTS,
    check_weights,
    folder_weights,
    line,
    read_config,
)
from clipguard.errors import ClipguardError
from clipguard.types import Images

# Read when huggingface_hub is imported: a download says which file is wanted and nothing about this machine.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

DEFAULT_MODEL = "ViT-B-32"
DEFAULT_PRETRAINED = "laion2b_s34b_b79k"
HUB_PREFIX = "hf-hub:"

# Small enough for the activations of one chunk to stay in the cache of a CPU core: 64 is a quarter slower.
IMAGE_CHUNK = 32
TEXT_CHUNK = 256
# With the seconds that importing torch takes, a missing network is told within ten.
PROBE_SECONDS = 4.0

_NAMES = (
    "give mini, a name of open_clip such as ViT-B-32/laion2b_s34b_b79k, hf-hub:ORG/NAME or local-dir:FOLDER"
)


@dataclass(frozen=True, eq=False)
class Clip:
    """A loaded dual encoder. Embeddings have length one, so that a dot product is a cosine.

    A pair's logit is `logit_scale * cosine + (logit_bias or 0)`. A softmax model (CLIP) turns the logits of
    k texts into a posterior by softmax. A sigmoid model (SigLIP) gives each pair a probability of its own,
    s = sigmoid(logit). Given that exactly one of k classes is true, class j has a posterior proportional to
    s_j * prod_{i != j} (1 - s_i) = exp(logit_j) * prod_i (1 - s_i): the softmax of the logits again, from
    which the common bias cancels. Single-label data grant the condition, so one rule serves both kinds.

    Attributes:
        name: what was asked for, as the user would write it.
        weights: the safetensors file.
        network: open_clip's model, in evaluation mode.
        preprocess: open_clip's evaluation transform: geometry on PIL images, then to tensor, then normalise.
        tokenizer: texts to [m, context_length] token numbers.
        settings: how the network is built from its weights, as text.
    """

    name: str
    weights: Path
    network: Any
    preprocess: Any
    tokenizer: Callable[[list[str]], Any]
    settings: str = ""

    @property
    def logit_scale(self) -> float:
        """The factor on the cosine (the parameter is kept as a logarithm)."""
        return float(self.network.logit_scale.detach().exp())

    @property
    def logit_bias(self) -> float | None:
        """The summand of a sigmoid model, None for a softmax model."""
        bias = getattr(self.network, "logit_bias", None)
        return None if bias is None else float(bias.detach())

    @property
    def sigmoid(self) -> bool:
        """Whether the model was trained with a sigmoid a pair (SigLIP) rather than a softmax a batch."""
        return self.logit_bias is not None

    @property
    def context_length(self) -> int:
        """How many tokens of a text are read, the start and end marks included."""
        return int(self.network.context_length)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The sha256 of the weights file, in hexadecimal."""
        with self.weights.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()

    @property
    def reading(self) -> str:
        """The sha256 of all that decides, beside the weights, what is seen in an image."""
        return hashlib.sha256(f"{self.settings}/{self.preprocess!r}".encode()).hexdigest()

    @property
    def hub_sha256(self) -> str | None:
        """The sha256 that the hub announced, by which its cache names large files; None for other files."""
        name = self.weights.resolve().name
        return name if re.fullmatch("[0-9a-f]{64}", name) else None

    def embed_images(
        self, batch: Images | Sequence[UInt8[np.ndarray, "_ _ 3"]]
    ) -> Float32[np.ndarray, "n d"]:
        """Return one embedding an image, at least one image; sizes may differ within the batch.

        The last bits of an embedding depend on how many images share its chunk of `IMAGE_CHUNK`: a data set
        cut at multiples of it gives the same floats however it is sharded.

        Raises:
            ClipguardError: the model returns NaN or Inf.
        """
        return self.embed_crops([self.crop(image) for image in batch])

    def crop(self, image: UInt8[np.ndarray, "_ _ 3"]) -> UInt8[np.ndarray, "_ _ 3"]:
        """Return the image as the model sees it: resized and cropped, which large images shrink by."""
        from PIL import Image

        shaped = Image.fromarray(image)
        for step in self.preprocess.transforms[:-2]:
            shaped = step(shaped)
        return np.asarray(shaped)

    def embed_crops(self, crops: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Float32[np.ndarray, "n d"]:
        """Return one embedding for each of what `crop` gave; see `embed_images`.

        Raises:
            ClipguardError: the model returns NaN or Inf.
        """
        import torch

        out = []
        with torch.inference_mode():
            for start in range(0, len(crops), IMAGE_CHUNK):
                pixels = self._pixels(crops[start : start + IMAGE_CHUNK])
                out.append(self.network.encode_image(pixels, normalize=True).float().numpy())
        return self._finite(np.concatenate(out))

    def embed_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "m d"]:
        """Return one embedding a text, at least one text; what exceeds `context_length` is cut off.

        Raises:
            ClipguardError: the model returns NaN or Inf.
        """
        import torch

        out = []
        with torch.inference_mode():
            for start in range(0, len(texts), TEXT_CHUNK):
                tokens = self.tokenizer(list(texts[start : start + TEXT_CHUNK]))
                out.append(self.network.encode_text(tokens, normalize=True).float().numpy())
        return self._finite(np.concatenate(out))

    def _pixels(self, crops: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Any:
        """Return what `preprocess` makes of them, its last two steps once a batch: the same, faster."""
        import torch

        *_geometry, _to_tensor, normalize = self.preprocess.transforms
        # Read as channels-last, which the networks here run faster on, without a copy.
        return normalize(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float().div(255))

    def _finite(self, embeddings: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
        if not np.isfinite(embeddings).all():
            raise ClipguardError(
                f"guide {self.name} returns NaN or Inf: get its weights {self.weights} again"
            )
        return embeddings


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
        # Asked again: if one of the two came from an older cache, the download has moved the snapshot on.
        return _load_folder(model, _fetch(model, repository, CONFIG).parent, HUB_PREFIX)
    return _load_built_in(model, pretrained)


def _load_built_in(model: str, pretrained: str) -> Clip:
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    name = f"{model}/{pretrained}"
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
    weights = _fetch(name, repository, Path(file).with_suffix(".safetensors").name if file else WEIGHTS)
    config = open_clip.get_model_config(model)
    _require_text_parts(name, config, local_tokenizer=False)
    # A path for weights, but nothing is guessed: the preprocessing and the activation are the tag's own.
    return _open(
        name,
        weights,
        model,
        model,
        json.dumps([config, tag], sort_keys=True, default=str),
        pretrained=str(weights),
        force_quick_gelu=bool(tag.get("quick_gelu", False)),
        **{f"image_{key}": tag[key] for key in ("mean", "std", "interpolation", "resize_mode")},
    )


def _load_folder(name: str, folder: Path, kind: str) -> Clip:
    weights = folder_weights(folder)
    config = read_config(name, folder)
    own_tokenizer = not config["text_cfg"].get("hf_tokenizer_name")
    local_tokenizer = own_tokenizer or kind == FOLDER_PREFIX
    _require_text_parts(name, config, local_tokenizer=local_tokenizer)
    place = f"{FOLDER_PREFIX}{folder}"
    # A text tower of another package is built by that package, which may fetch it first.
    if not config["text_cfg"].get("hf_model_name"):
        check_weights(name, place, weights)
    built = json.dumps(config, sort_keys=True)
    return _open(name, weights, place, place if local_tokenizer else name, built)


def _open(name: str, weights: Path, model: str, tokenizer: str, settings: str, **arguments: Any) -> Clip:
    import open_clip
    import torch

    try:
        network, preprocess = open_clip.create_model_from_pretrained(model, **arguments)
        read_text = open_clip.get_tokenizer(tokenizer)
        network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        clip = Clip(name, weights, network, preprocess, read_text, settings)
        # Sizes, means and deviations that fit no image, or no text, show here and not in the midst of a scan.
        clip.embed_images([np.zeros((8, 8, 3), np.uint8)])
        clip.embed_texts(["a"])
    except ClipguardError:
        raise
    except Exception as error:  # A foreign folder can make open_clip and timm raise nearly anything.
        raise ClipguardError(f"guide {name} cannot be built: {line(error)}") from error
    return clip


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
            f"pickled weights are never loaded, {CONVERT}" if file != CONFIG else "it is no open_clip model"
        )
        raise ClipguardError(f"guide {name}: hub repository {repository} has no {file}; {advice}") from error
    except (OSError, ValueError) as error:
        raise ClipguardError(
            f"guide {name}: {file} of {repository} cannot be fetched: {line(error)}"
        ) from error


def _cached(repository: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repository, file)
    except HFValidationError as error:
        raise ClipguardError(
            f"guide repository {repository!r} is no hub name: give hf-hub:ORG/NAME"
        ) from error
    return Path(found) if isinstance(found, str) else None


def _require_network(name: str, repository: str, file: str) -> None:
    """Ask the hub once, by its own client and so by the user's proxies, before that is left to retry.

    In a thread, because a socket's time-out holds for each address in turn, not for the name's look-up.
    """
    from huggingface_hub import get_session, hf_hub_url

    url = hf_hub_url(repository, file)
    patience = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or PROBE_SECONDS)
    statuses: list[int] = []

    def ask() -> None:
        with suppress(Exception):
            statuses.append(get_session().head(url, timeout=patience).status_code)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience)
    # A proxy without a way out answers 502 to 504; what any other answer means, the client explains.
    if not statuses or statuses[0] >= 500:
        raise _unreachable(name, repository)


def _unreachable(name: str, repository: str) -> ClipguardError:
    from huggingface_hub import constants

    return ClipguardError(
        f"guide {name}: its files are not on this machine and {constants.ENDPOINT} does not answer; "
        "use --guide mini (embedded) or --guide local-dir:FOLDER, or copy a Hugging Face cache that holds "
        f"{repository} here and set HF_HOME to it (slow network: set HF_HUB_ETAG_TIMEOUT=30)"
    )


def _path_hint(text: str) -> str:
    looks_like_path = os.sep in text or Path(text).suffix in {
        ".pt",
        ".pth",
        ".bin",
        ".ckpt",
        ".safetensors",
        ".npz",
    }
    if not (looks_like_path or Path(text).exists()):
        return ""
    return f" (a bare path is refused, its preprocessing would be a guess; {FOLDER_PREFIX}FOLDER holds both)"
