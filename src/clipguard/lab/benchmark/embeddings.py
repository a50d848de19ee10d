"""Image embeddings kept by image content: cells share most of their images, and a guide's pass is slow.

The last bits of an embedding depend on how many images share its chunk, not on which ones or in what order
(measured; see `tests/test_benchmark_embeddings.py`). So every embedding here comes from a chunk of exactly
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

import numpy as np
from jaxtyping import Float32, UInt8

from clipguard.clip.model import IMAGE_CHUNK, Clip
from clipguard.errors import ClipguardError, reason_of
from clipguard.lab.benchmark.machine import machine
from clipguard.runs.files import replacing
from clipguard.seeds import Seed


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
    _known: dict[bytes, Float32[np.ndarray, "d"]] = field(default_factory=dict)
    _costs: list[tuple[int, float]] = field(default_factory=list)

    @property
    def pace(self) -> float:
        """Seconds an image when nothing is remembered, by the passes (at least one) that filled the memory."""
        return sum(seconds for _, seconds in self._costs) / sum(count for count, _ in self._costs)

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
            self._write(unknown, vectors, time.monotonic() - began)
        return degraded(np.stack([self._known[key] for key in keys]), keys, self.degrade)

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
        for file in sorted(self._home.glob("*.npz")):
            try:
                with np.load(file, allow_pickle=False) as shard:
                    self._known.update(zip(map(bytes, shard["keys"]), shard["vectors"], strict=True))
                    self._costs.append((len(shard["keys"]), float(shard["seconds"])))
            except (OSError, ValueError, KeyError) as error:
                why = reason_of(error)
                raise ClipguardError(f"{file} cannot be read ({why}): delete it and run again") from error

    def _write(self, keys: list[bytes], vectors: Float32[np.ndarray, "n d"], seconds: float) -> None:
        self._home.mkdir(parents=True, exist_ok=True)
        # Named by its contents, so that two processes never write different shards to one name.
        name = hashlib.sha256(b"".join(keys)).hexdigest()[:16]
        with replacing(self._home / f"{name}.npz") as part, part.open("wb") as opened:
            digests = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32)
            np.savez(opened, keys=digests, vectors=vectors, seconds=seconds)
        self._costs.append((len(keys), seconds))
        self._known.update(zip(keys, vectors, strict=True))


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
    noise = np.stack([seed.child(key.hex()).numpy().standard_normal(vectors.shape[1]) for key in keys])
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    mixed = (1 - share) * vectors + share * noise
    unit = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
    return np.asarray(unit, np.float32)


def remembering(clip: Clip, folder: Path, degrade: float = 0.0) -> RememberingClip:
    """Return the same model with a memory in `folder`, degraded by a share of noise."""
    own = {field.name: getattr(clip, field.name) for field in fields(Clip)}
    return RememberingClip(**own, intact=clip.fingerprint, folder=folder, degrade=degrade)
