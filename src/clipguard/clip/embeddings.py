"""The embedding pass: images to thumbnails and CLIP embeddings, shard by shard."""

from pathlib import Path

import numpy as np

from clipguard.clip.model import Clip
from clipguard.data import ImageSource
from clipguard.data.decode import Decoder, Unreadable, check_readable, decode_rows, thumbnail
from clipguard.runs import (
    read_array,
    read_json,
    resume_folder,
    write_array,
    write_image_set,
    write_json,
    write_pieces,
)
from clipguard.types import StepProgress, image_set

SHARD = 1024
"""Rows a shard: a killed embedding pass loses at most so many."""

_BATCH = 64


def _write_shard(
    source: ImageSource, rows: range, clip: Clip, size: tuple[int, int], shard: Path, decoder: Decoder
) -> None:
    """Write the files of one shard; `unreadable.json` comes last and says that the others are whole."""
    shard.mkdir(exist_ok=True)
    bad: list[Unreadable] = []
    kept: list[int] = []
    crops: list[np.ndarray] = []
    images, embeddings = [], []
    for row, image in decode_rows(source, rows, decoder):
        if isinstance(image, Unreadable):
            bad.append(image)
            continue
        kept.append(row)
        # Thumbnail and crop are small: many huge images are never in memory together.
        images.append(thumbnail(image, size))
        crops.append(clip.crop(image))
        if len(crops) == _BATCH:
            embeddings.append(clip.embed_crops(crops))
            crops = []
    if crops:
        embeddings.append(clip.embed_crops(crops))
    write_array(shard / "images.npy", np.array(images, dtype=np.uint8).reshape(-1, *size, 3))
    merged = np.concatenate(embeddings) if embeddings else np.zeros((0, 1), np.float32)
    write_array(shard / "embeddings.npy", merged)
    write_array(shard / "rows.npy", np.array(kept, dtype=np.int64))
    write_json(shard / "unreadable.json", [[entry.id, entry.reason] for entry in bad])


def embed_source(
    source: ImageSource,
    clip: Clip,
    size: tuple[int, int],
    folder: Path,
    progress: StepProgress | None = None,
) -> None:
    """Write thumbnails as an image set, `embeddings.npy` and `unreadable.json`; decode each image once.

    A shard that an earlier, killed attempt has left whole is not computed again. The shards stay in the
    stage's `resume_folder` until the run folder has finished the stage.

    Args:
        source: n images, of any sizes.
        clip: the model that embeds them.
        size: height and width of the thumbnails, in pixels.
        folder: where the files go.
        progress: called with (images done, n) after each shard.

    Raises:
        ClipguardError: too many images are unreadable.
    """
    kept = resume_folder(folder)
    shards = [kept / f"shard-{number:06d}" for number in range(-(-len(source) // SHARD))]
    decoder = Decoder(source.limits)
    for number, shard in enumerate(shards):
        rows = range(number * SHARD, min((number + 1) * SHARD, len(source)))
        if not (shard / "unreadable.json").exists():
            _write_shard(source, rows, clip, size, shard, decoder)
        if progress is not None:
            progress(rows.stop, len(source))
    _merge(source, shards, folder)


def _merge(source: ImageSource, shards: list[Path], folder: Path) -> None:
    bad = tuple(Unreadable(*entry) for shard in shards for entry in read_json(shard / "unreadable.json"))
    check_readable(source, bad)
    rows = np.concatenate([read_array(shard / "rows.npy") for shard in shards])
    kept = source.take(rows)
    full = [shard for shard in shards if len(read_array(shard / "rows.npy"))]
    parts = [read_array(shard / "images.npy", mmap=True) for shard in full]
    write_pieces(folder / "images.npy", (len(rows), *parts[0].shape[1:]), parts[0].dtype, parts)
    images = read_array(folder / "images.npy", mmap=True)
    write_image_set(folder, image_set(images, kept.labels, kept.class_names, kept.ids))
    write_array(
        folder / "embeddings.npy", np.concatenate([read_array(shard / "embeddings.npy") for shard in full])
    )
    listed = [{"id": entry.id, "reason": entry.reason} for entry in (*source.refused, *bad)]
    write_json(folder / "unreadable.json", listed)
