"""A loaded CLIP: images and texts to embeddings."""

import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, UInt8

from clipguard.errors import ClipguardError
from clipguard.types import Images, Preprocessing, chunks

# Small enough for the activations of one chunk to stay in the cache of a CPU core: 64 is a quarter slower.
IMAGE_CHUNK: Final = 32
TEXT_CHUNK: Final = 256
GPU_CHUNK: Final = 512
"""Images or texts that a GPU is given at once; fewer where its memory is too small."""


@dataclass(frozen=True, eq=False)
class Clip:
    """A loaded dual encoder. Embeddings have length one, so that a dot product is a cosine.

    A pair's logit is `logit_scale * cosine`, plus a bias in a sigmoid model. A softmax model (CLIP) turns the
    logits of k texts into a posterior by softmax. A sigmoid model (SigLIP) gives each pair a probability of
    its own, s = sigmoid(logit). Given that exactly one of k classes is true, class j has a posterior
    proportional to s_j * prod_{i != j} (1 - s_i) = exp(logit_j) * prod_i (1 - s_i): the softmax of the logits
    again, from which the common bias cancels. Single-label data grant the condition, so one rule serves both
    kinds.

    Attributes:
        name: the model, as the user would write it.
        weights: the safetensors file.
        network: open_clip's model, in evaluation mode.
        preprocessing: open_clip's evaluation transform, as a value.
        tokenizer: texts to [m, context_length] token numbers.
        settings: the config by which the network is built from its weights, as text.
    """

    name: str
    weights: Path
    network: Any
    preprocessing: Preprocessing
    tokenizer: Callable[[list[str]], Any]
    settings: str = ""

    @property
    def logit_scale(self) -> float:
        """The factor on the cosine (the parameter is kept as a logarithm)."""
        return float(self.network.logit_scale.detach().exp())

    @property
    def width(self) -> int:
        """The length of an embedding."""
        return int(self.embed_texts(["a"]).shape[1])

    @property
    def chunk(self) -> int:
        """Images that are embedded together: on one device, always as many."""
        from clipguard.compute.device import device_for

        return GPU_CHUNK if device_for(self.network).kind == "cuda" else IMAGE_CHUNK

    @functools.cached_property
    def fingerprint(self) -> str:
        """The sha256 of the weights file, in hexadecimal."""
        with self.weights.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()

    @property
    def preprocessing_sha256(self) -> str:
        """The sha256 of all that decides an embedding beside the weights: config and preprocessing."""
        return hashlib.sha256(f"{self.settings}/{self.preprocessing!r}".encode()).hexdigest()

    @property
    def hub_sha256(self) -> str | None:
        """The sha256 by which the hub's cache names large files; None for a file from elsewhere."""
        name = self.weights.resolve().name
        return name if re.fullmatch("[0-9a-f]{64}", name) else None

    def embed_images(
        self, batch: Images | Sequence[UInt8[np.ndarray, "_ _ 3"]]
    ) -> Float32[np.ndarray, "n d"]:
        """Return one embedding an image, at least one image; sizes may differ within the batch.

        The last bits of an embedding depend on how many images share its chunk of `IMAGE_CHUNK`: a data set
        cut at multiples of it gives the same floats however it is sharded. Chunks are computed side by side
        in lanes; a GPU takes `GPU_CHUNK` images at once.

        Raises:
            ClipguardError: the model returns NaN or Inf.
        """
        # Not above: a model of crops needs no decoder.
        from clipguard.data.decode.geometry import prepared

        return self.embed_crops([prepared(image, self.preprocessing) for image in batch])

    def embed_crops(self, crops: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Float32[np.ndarray, "n d"]:
        """Return one embedding for each image that is resized and cropped already; see `embed_images`.

        Raises:
            ClipguardError: the model returns NaN or Inf.
        """
        return self._embedded(self.network.encode_image, self.pixels, crops, IMAGE_CHUNK)

    def embed_texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "m d"]:
        """Return one embedding a text, at least one text; tokens beyond the context length are cut off.

        Raises:
            ClipguardError: the model returns NaN or Inf.
        """
        return self._embedded(
            self.network.encode_text, lambda chunk: self.tokenizer(list(chunk)), texts, TEXT_CHUNK
        )

    def pixels(self, crops: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Any:
        """Return the crops as the network takes them: float32 [b, 3, h, w] here, normalised."""
        from clipguard.compute.device import here, tensor

        # A view in channels-last order, in which these networks run faster.
        return self.normalised(tensor(np.stack(crops)).to(here()).permute(0, 3, 1, 2).float().div(255))

    def normalised(self, pixels: Any) -> Any:
        """Return pixels in 0..1, float32 [b, 3, h, w], less the mean and over the deviation."""
        import torch

        mean, std = (
            torch.tensor(values, device=pixels.device).view(-1, 1, 1)
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        return pixels.sub(mean).div(std)

    def _embedded(
        self, encode: Callable[..., Any], prepare: Callable[[Any], Any], items: Sequence[Any], chunk: int
    ) -> Float32[np.ndarray, "n d"]:
        import torch

        from clipguard.compute.device import Device, array, computing_on, device_for, here
        from clipguard.compute.inference import piecewise
        from clipguard.compute.lanes import in_lanes

        def embedded(part: slice, device: Device) -> Float32[np.ndarray, "_ d"]:
            # Inference mode, like precision, is a matter of each lane.
            with torch.inference_mode(), device.autocast(inference=True):
                return array(encode(prepare(items[part]).to(here()), normalize=True).float())

        device = device_for(self.network)
        with computing_on(device):
            if device.kind == "cuda":
                pieces = piecewise(functools.partial(embedded, device=device), len(items), GPU_CHUNK)
                if not all(np.isfinite(piece).all() for piece in pieces):
                    # Some networks exceed the range of float16.
                    exact = replace(device, dtype="float32")
                    pieces = piecewise(functools.partial(embedded, device=exact), len(items), GPU_CHUNK)
            else:
                parts = chunks(len(items), chunk)
                pieces = in_lanes([functools.partial(embedded, part, device) for part in parts])
        embeddings = np.concatenate(pieces)
        if not np.isfinite(embeddings).all():
            raise ClipguardError(
                f"guide {self.name} returns NaN or Inf: get its weights {self.weights} again"
            )
        return embeddings
