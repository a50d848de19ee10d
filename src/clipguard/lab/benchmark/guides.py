"""Guides of a benchmark: they remember embeddings, and are degraded on purpose where a file says so.

Image embeddings are kept by image content: cells share most of their images, and a guide's pass is slow. The
last bits of an embedding depend on how many images share its chunk, not on which ones or in what order
(measured; see `tests/test_benchmark_guides.py`). So every embedding here comes from a chunk of exactly
`IMAGE_CHUNK` images, filled up with copies where there are fewer: an image's floats are then the same
whatever was cached before, and the same that a pass without the cache gives in its full chunks.

A degraded model mixes noise into the embeddings that it gives out. The kept ones are always intact.
"""

import functools
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float32, Int64, UInt8

from clipguard.clip.loading import FOLDER_PREFIX
from clipguard.clip.model import IMAGE_CHUNK, Clip
from clipguard.clip.zero_shot import ClipGuide, guide_from_name
from clipguard.detection.entropy_map import opinion
from clipguard.lab.benchmark.config import GuideChoice
from clipguard.lab.benchmark.machine import machine
from clipguard.runs import read_array, write_array
from clipguard.runs.locks import locked
from clipguard.seeds import Seed
from clipguard.types import ImageSet

SHARD: Final = 1024
"""Images that are embedded and kept at once: what a killed pass loses at most."""


@dataclass(frozen=True, eq=False)
class RememberingClip(Clip):
    """A CLIP whose image embeddings are kept in `folder`, in a sub-folder for its weights and this machine.

    Attributes:
        intact: fingerprint of the model without degradation, under which its embeddings are kept.
        folder: where they are kept.
        degrade: share of each embedding that is replaced by noise, as `degraded` does it.
    """

    intact: str = ""
    folder: Path = Path()
    degrade: float = 0.0
    _known: dict[bytes, np.void] = field(default_factory=dict)
    _given: set[bytes] = field(default_factory=set)

    @property
    def pace(self) -> float:
        """Seconds an image without the memory, of those embedded by this object; 0 before the first.

        The memory holds images of other data sets, too, which took another time.
        """
        if not self._given:
            return 0.0
        return float(np.mean([self._known[key]["seconds"] for key in self._given]))

    def embed_crops(self, crops: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> Float32[np.ndarray, "n d"]:
        """Return one embedding for each of what `crop` gave, from memory, from disk or computed now."""
        keys = [hashlib.sha256(repr(crop.shape).encode() + crop.tobytes()).digest() for crop in crops]
        if not self._known:
            self._read()
        crop_of = dict(zip(keys, crops, strict=True))
        if unknown := [key for key in crop_of if key not in self._known]:
            images = [crop_of[key] for key in unknown]
            copies = -len(images) % IMAGE_CHUNK
            began = time.monotonic()
            vectors = super().embed_crops(images + images[-1:] * copies)[: len(images)]
            # Copies take their time, too.
            self._write(unknown, vectors, (time.monotonic() - began) / (len(unknown) + copies))
        self._given.update(keys)
        return degraded(np.stack([self._known[key]["vector"] for key in keys]), keys, self.degrade)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The sha256 of the weights; of weights and degradation for a degraded model."""
        if not self.degrade:
            return self.intact
        return hashlib.sha256(f"{self.intact} {self.degrade}".encode()).hexdigest()

    @property
    def _home(self) -> Path:
        """The folder of this model on this machine: elsewhere the floats may differ."""
        text = "/".join((self.intact, self.preprocessing_sha256, machine()))
        return self.folder / hashlib.sha256(text.encode()).hexdigest()[:16]

    def _read(self) -> None:
        for file in sorted(self._home.glob("*.npy")):
            self._known.update((record["key"].tobytes(), record) for record in read_array(file))

    def _write(self, keys: list[bytes], vectors: Float32[np.ndarray, "n d"], each: float) -> None:
        """Keep embeddings, and the seconds that each of them took."""
        kind = [("key", "V32"), ("vector", np.float32, vectors.shape[1]), ("seconds", np.float64)]
        records = np.zeros(len(keys), kind)
        records["key"], records["vector"], records["seconds"] = keys, vectors, each
        self._home.mkdir(parents=True, exist_ok=True)
        # Named by its contents: no shard takes the place of another one.
        name = hashlib.sha256(b"".join(keys)).hexdigest()[:16]
        # Cells of one data set share images: two processes may come with the same ones.
        with locked(self._home / ".lock"):
            write_array(self._home / f"{name}.npy", records)
        self._known.update(zip(keys, records, strict=True))


def degraded(
    vectors: Float32[np.ndarray, "n d"], keys: Sequence[bytes], share: float
) -> Float32[np.ndarray, "n d"]:
    """Return unit embeddings of which a share is noise: (1 - share) e + share u, scaled to length one.

    u is a random direction, drawn for each image from its key. The same image therefore has the same noise
    in every pass. At share 1 nothing is left of the image; at 0 the vectors come back untouched.

    Args:
        vectors: unit embeddings e of the images.
        keys: a hash of each image.
        share: in [0, 1].
    """
    if not share:
        return vectors
    seed = Seed(0).child("degrade")
    noise = np.stack([seed.child(key.hex()).generator().standard_normal(vectors.shape[1]) for key in keys])
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    mixed = (1 - share) * vectors + share * noise
    unit = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    return np.asarray(unit, np.float32)


def remembering(clip: Clip, folder: Path, degrade: float = 0.0) -> RememberingClip:
    """Return the same model with a memory in `folder`, degraded by a share of noise."""
    own = {field.name: getattr(clip, field.name) for field in fields(Clip)}
    return RememberingClip(**own, intact=clip.fingerprint, folder=folder, degrade=degrade)


@dataclass(frozen=True)
class BenchGuide(ClipGuide):
    """A guide that a defence takes for an ordinary one.

    Attributes:
        memory: folder in which image embeddings are kept.
        degrade: share of each image embedding that is replaced by noise, see `degraded`. Logits,
            propensity weights and linear probes all follow from the degraded embeddings. At 1 nothing is
            left of the images.
    """

    memory: Path = field(default=Path(), kw_only=True)
    degrade: float = field(default=0.0, kw_only=True)

    @property
    def name(self) -> str:
        """The guide in words."""
        return super().name + (f" degraded by {self.degrade:g}" if self.degrade else "")

    @functools.cached_property
    def clip(self) -> RememberingClip:
        """The loaded model, with a memory."""
        return remembering(super().clip, self.memory, self.degrade)

    @property
    def weights_verified_by(self) -> str | None:
        """Whose hash the weights have; None for a degraded guide, which nobody released."""
        return None if self.degrade else super().weights_verified_by


def guide_of(choice: GuideChoice, memory: Path, beside: Path) -> BenchGuide:
    """Return the guide of a choice; `beside` is the folder that a relative `local-dir:` starts from."""
    name = choice.name
    if name.startswith(FOLDER_PREFIX):
        folder = Path(name.removeprefix(FOLDER_PREFIX)).expanduser()
        name = f"{FOLDER_PREFIX}{beside / folder}"
    plain = guide_from_name(name)
    return BenchGuide(
        plain.model,
        plain.pretrained,
        templates=choice.templates or None,
        use_logit_scale=choice.logit_scale,
        memory=memory,
        degrade=choice.degrade,
    )


def accuracy(guide: BenchGuide, data: ImageSet, labels: Int64[np.ndarray, "n"]) -> float:
    """Return the share of images to which the guide gives their label of `labels`."""
    starts = range(0, len(data), SHARD)
    shards = [guide.clip.embed_images(np.asarray(data.images[start : start + SHARD])) for start in starts]
    scores = guide.logits(np.concatenate(shards), data.class_names)
    return float(np.mean(opinion(scores, labels).likeliest == labels))
