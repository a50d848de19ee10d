"""Batched logits and embeddings: one code path for arrays in memory and for sources of any size."""

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from clipguard.decode import Decoder, Unreadable, check_readable, decode_rows, decoding, thumbnail
from clipguard.errors import ClipguardError
from clipguard.models import Normalized
from clipguard.sources import ImageSource
from clipguard.store import (
    read_array,
    read_json,
    resume_folder,
    write_array,
    write_image_set,
    write_json,
    write_pieces,
)
from clipguard.types import Images, image_set

if TYPE_CHECKING:
    from clipguard.clip import Clip

SHARD = 1024
"""Rows a shard: what a killed guide pass loses at most."""

_BATCH = 64

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


@functools.cache
def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks, which makes training on the CPU about 15 % faster.

    By default every large activation is mapped and unmapped anew, and the page faults cost more than the
    arithmetic of a narrow net. Elsewhere than on glibc this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    trim_threshold, mmap_max = -1, -4
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


def classifier_logits(model: Normalized, images: Images, batch_size: int = 250) -> Float32[np.ndarray, "n k"]:
    """Return the model's logits of all images, in evaluation mode."""
    keep_freed_memory()
    model.eval()
    device = model.mean.device
    out = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = torch.from_numpy(np.array(images[start : start + batch_size]))
            out.append(model(batch.permute(0, 3, 1, 2).to(device)).float().cpu().numpy())
    return np.concatenate(out)


def activations(
    model: Normalized, images: Images, rows: Int64[np.ndarray, "m"], batch_size: int = 250
) -> Float32[np.ndarray, "m d"]:
    """Return what the model's last layer is given of the images of `rows`, in evaluation mode.

    That is a linear layer whose output is the logits. A model without one gives its logits instead.

    Raises:
        ClipguardError: NaN or Inf is among them.
    """
    given: list[Tensor] = []
    head = _head(model, images[:1])

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        given.append(inputs[0].float().cpu())

    hooks = [] if head is None else [head.register_forward_pre_hook(keep)]
    try:
        starts = range(0, len(rows), batch_size)
        logits = [classifier_logits(model, images[rows[i : i + batch_size]]) for i in starts]
    finally:
        for hook in hooks:
            hook.remove()
    found: Float32[np.ndarray, "m d"] = np.concatenate([values.numpy() for values in given] or logits)
    if not np.isfinite(found).all():
        raise ClipguardError("the model's last layer is given NaN or Inf for some images: give another model")
    return found


def _head(model: Normalized, image: Images) -> nn.Linear | None:
    """Return the linear layer that is given one vector of an image and makes the logits of it, if any."""
    made: list[tuple[nn.Linear, int, Tensor]] = []

    def note(layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        made.append((layer, len(inputs), output))

    linear = [module for module in model.network.modules() if isinstance(module, nn.Linear)]
    hooks = [layer.register_forward_hook(note) for layer in linear]
    try:
        logits = classifier_logits(model, image)
    finally:
        for hook in hooks:
            hook.remove()
    called = [layer for layer, *_ in made]
    heads = [
        layer
        for layer, inputs, output in made
        # One that is given its input by name does not show it to a hook.
        if inputs and called.count(layer) == 1 and np.array_equal(output.float().cpu().numpy(), logits)
    ]
    return heads[0] if heads else None


@dataclass(frozen=True, slots=True)
class _Shard:
    """The files of one shard; `unreadable` is written last and says that the others are whole."""

    images: Path
    embeddings: Path
    rows: Path
    unreadable: Path


def _shard(folder: Path, number: int) -> _Shard:
    names = ("images.npy", "embeddings.npy", "rows.npy", "unreadable.json")
    return _Shard(*(folder / f"shard-{number:06d}-{name}" for name in names))


def _write_shard(
    source: ImageSource, rows: range, clip: "Clip", size: tuple[int, int], shard: _Shard, decoder: Decoder
) -> None:
    bad: list[Unreadable] = []
    kept: list[int] = []
    crops: list[np.ndarray] = []
    images, embeddings = [], []
    for row, image in decode_rows(source, rows, decoder):
        if isinstance(image, Unreadable):
            bad.append(image)
            continue
        kept.append(row)
        # Both are small, so that a run of huge images is never in memory together.
        images.append(thumbnail(image, size))
        crops.append(clip.crop(image))
        if len(crops) == _BATCH:
            embeddings.append(clip.embed_crops(crops))
            crops = []
    if crops:
        embeddings.append(clip.embed_crops(crops))
    write_array(shard.images, np.array(images, dtype=np.uint8).reshape(-1, *size, 3))
    write_array(shard.embeddings, np.concatenate(embeddings) if embeddings else np.zeros((0, 1), np.float32))
    write_array(shard.rows, np.array(kept, dtype=np.int64))
    write_json(shard.unreadable, [[entry.id, entry.reason] for entry in bad])


def embed_source(
    source: ImageSource, clip: "Clip", size: tuple[int, int], folder: Path, progress: Progress | None = None
) -> None:
    """Write `folder`: thumbnails as an image set, `embeddings.npy`, `unreadable.json`, decoding images once.

    A shard that an earlier, killed attempt has left whole is not computed again. The shards stay in the
    stage's `resume_folder`, and so at hand, until the store has finished the stage.

    Raises:
        ClipguardError: too many images are unreadable.
    """
    keep_freed_memory()
    kept = resume_folder(folder)
    shards = [_shard(kept, number) for number in range(-(-len(source) // SHARD))]
    with decoding(source.limits) as decoder:
        for number, shard in enumerate(shards):
            rows = range(number * SHARD, min((number + 1) * SHARD, len(source)))
            if not shard.unreadable.exists():
                _write_shard(source, rows, clip, size, shard, decoder)
            if progress is not None:
                progress(rows.stop, len(source))
    _merge(source, shards, folder)


def _merge(source: ImageSource, shards: list[_Shard], folder: Path) -> None:
    bad = tuple(Unreadable(*entry) for shard in shards for entry in read_json(shard.unreadable))
    check_readable(source, bad)
    rows = np.concatenate([read_array(shard.rows) for shard in shards])
    kept = source.take(rows)
    full = [shard for shard in shards if len(read_array(shard.rows))]
    parts = [read_array(shard.images, mmap=True) for shard in full]
    write_pieces(folder / "images.npy", (len(rows), *parts[0].shape[1:]), parts[0].dtype, parts)
    images = read_array(folder / "images.npy", mmap=True)
    write_image_set(folder, image_set(images, kept.labels, kept.class_names, kept.ids))
    write_array(folder / "embeddings.npy", np.concatenate([read_array(shard.embeddings) for shard in full]))
    listed = [{"id": entry.id, "reason": entry.reason} for entry in (*source.refused, *bad)]
    write_json(folder / "unreadable.json", listed)
