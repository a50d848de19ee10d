"""The reading pass: one read of a source gives hashes, images at any sizes and CLIP embeddings, by shards.

    FOLDER/img_emb/img_emb_000000.npy          embeddings of the readable images [m, d], float32
    FOLDER/metadata/metadata_000000.parquet    their ids as `image_path`, and their labels
    FOLDER/rows/rows_000000.parquet            hash, size or fault of every image; written last
    IMAGES/images_000000.npy                   the readable images at one size [m, h, w, 3], uint8

The first two are the layout of clip-retrieval, whose tools read them.
"""

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Int64

from clipguard.clip.baseline import BaselineEmbeddings
from clipguard.clip.known_embeddings import KnownEmbeddings
from clipguard.clip.model import IMAGE_CHUNK, Clip
from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.engine import Engine
from clipguard.compute.lanes import ordered_map
from clipguard.data import ImageSource
from clipguard.data.decode import Decoder, ReadRow, Unreadable, read_rows
from clipguard.data.decode.pixels import Views
from clipguard.data.decode.reading import MAX_UNREADABLE
from clipguard.data.provenance import record_rows, record_source, recorded_rows, rows_file
from clipguard.data.source import Opened
from clipguard.errors import ClipguardError
from clipguard.runs import write_array, write_pieces, write_table
from clipguard.types import Preprocessing, StepProgress

SHARD: Final = 1024
"""Rows a shard: a killed pass loses at most so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingPass:
    """What is read, and where it goes.

    Attributes:
        source: n images of any sizes.
        guide: the model that embeds them; None where `folder` holds the embeddings already.
        folder: of embeddings and of what is known of each image.
        images: folders of images, each with the preprocessing that gives them.
        known: folder of embeddings that are taken instead of computed ones.
        baseline: folder of the embeddings of an earlier run; only images that it lacks are embedded.
        lanes: chunks that are embedded side by side, each on one thread.
        shard_rows: rows a shard.
    """

    source: ImageSource
    guide: ClipGuide | None
    folder: Path
    images: tuple[tuple[Path, Preprocessing], ...]
    known: Path | None = None
    baseline: Path | None = None
    lanes: int = 1
    shard_rows: int = field(default_factory=lambda: SHARD)

    @property
    def count(self) -> int:
        """Number of shards."""
        return -(-len(self.source) // self.shard_rows)

    def units(self, shards: Sequence[int]) -> list[list[int]]:
        """Return the shards, those together that would be read from the same start of the source."""
        firsts = [shard * self.shard_rows for shard in shards]
        starts = np.searchsorted(self.source.starts, firsts, side="right")
        cuts = np.flatnonzero(np.diff(starts)) + 1
        return [part.tolist() for part in np.split(np.array(shards, np.int64), cuts)]

    def rows(self, shard: int) -> Int64[np.ndarray, "m"]:
        """Return the rows of a shard that are read: all, or those that are known to be readable."""
        every = np.arange(shard * self.shard_rows, min((shard + 1) * self.shard_rows, len(self.source)))
        return every if self.guide else every[recorded_rows(rows_file(self.folder, shard)).readable]

    def has(self, shard: int, /) -> bool:
        """Return whether an earlier attempt has left a shard whole."""
        return rows_file(self.folder, shard).exists() and all(
            image_file(folder, shard).exists() for folder, _ in self.images
        )

    def elsewhere(self) -> "Callable[[], ReadingPass]":
        """Return what makes the same pass in another process that sees the same files.

        Raises:
            ClipguardError: the source is no file or folder.
        """
        if self.source.opened is None:
            raise ClipguardError(
                f"{self.source.location} is in the memory of this process: give a path to use other processes"
            )
        images = tuple((folder.absolute(), view) for folder, view in self.images)
        guide = self.guide and self.guide.unloaded()
        return partial(
            _reopened,
            self.source.opened,
            key=self.source.key,
            guide=guide,
            folder=self.folder.absolute(),
            images=images,
            known=self.known and self.known.absolute(),
            baseline=self.baseline and self.baseline.absolute(),
            shard_rows=self.shard_rows,
        )

    def __call__(self, shards: Sequence[int], /) -> Iterator[int]:
        """Finish the shards in order; the number of each is returned when all its files are in place.

        Raises:
            ClipguardError: an image is not what it was when it was embedded, or the guide gives NaN.
        """
        embed = self._embedding()
        parts: list[_Embedded] = []
        for part in ordered_map(embed, self._pieces(shards), self.lanes, 2 * self.lanes):
            parts.append(part)
            if part[0].last:
                self._write(part[0].shard, parts)
                parts = []
                yield part[0].shard

    @property
    def _views(self) -> tuple[Preprocessing, ...]:
        """What is made of each image: what the guide is given, where it is asked, before the others."""
        crops = (self.guide.clip.preprocessing,) if self.guide and not self.known else ()
        return (*crops, *(view for _, view in self.images))

    def _embedding(self) -> "Callable[[_Piece], _Embedded]":
        """Return what embeds a piece: the guide, a folder that has the embeddings, or nothing."""
        if not self.guide:
            return partial(_embedded, lambda good: None)
        if self.baseline:
            return partial(_embedded_if_new, self.guide, BaselineEmbeddings(self.baseline))
        if not self.known:
            embed = self.guide.clip.embed_crops
            return lambda piece: _without_crops(
                _embedded(lambda good: embed([views.images[0] for _, views in good]), piece)
            )
        known, width = KnownEmbeddings(self.known, self.source), self.guide.clip.width
        if known.width != width:
            raise ClipguardError(
                f"embeddings {self.known} have {known.width} numbers each, those of guide {self.guide.name} "
                f"{width}: give the guide that made them"
            )
        return partial(_embedded, lambda good: known[np.array([row for row, _ in good], np.int64)])

    def _pieces(self, shards: Sequence[int]) -> "Iterator[_Piece]":
        """Return what is read in pieces of the guide's chunk of readable images, the last of a shard smaller.

        An embedding's last bits depend on how many images are embedded together: so a piece never holds
        images of two shards, whoever reads them.
        """
        if not shards:  # A process that was killed had finished all of them.
            return
        rows = [self.rows(shard) for shard in shards]
        chunk = self.guide.clip.chunk if self.guide else IMAGE_CHUNK
        decoder = Decoder(self.source.limits)
        reads = read_rows(self.source, np.concatenate(rows), self._views, decoder)
        for shard, its_rows in zip(shards, rows, strict=True):
            piece = _Piece(shard, [])
            for read in islice(reads, len(its_rows)):
                if piece.readable == chunk:
                    yield piece
                    piece = _Piece(shard, [])
                piece.reads.append(read)
            yield _Piece(shard, piece.reads, last=True)

    def _write(self, shard: int, parts: "list[_Embedded]") -> None:
        reads = [read for piece, _ in parts for read in piece.reads]
        good = [read for read in reads if not isinstance(read.views, Unreadable)]
        if not self.guide:
            self._check_same(shard, reads)
        for number, (folder, view) in enumerate(self.images):
            # Of an attempt that was killed before it had noted what it read, nothing is kept.
            if self.guide or not image_file(folder, shard).exists():
                folder.mkdir(exist_ok=True)
                pieces = (views.images[number][None] for views in _views(good))
                shape = (len(good), *view.size, 3)
                write_pieces(image_file(folder, shard), shape, np.dtype(np.uint8), pieces)
        if self.guide:
            self._write_embeddings(shard, good, [vectors for _, vectors in parts if vectors is not None])
            record_rows(_within(rows_file(self.folder, shard)), self.source, reads)

    def _write_embeddings(
        self, shard: int, good: list[ReadRow], vectors: list[Float32[np.ndarray, "_ d"]]
    ) -> None:
        merged = np.concatenate(vectors) if vectors else np.zeros((0, 1), np.float32)
        write_array(_within(embedding_file(self.folder, shard)), merged)
        rows = [read.row for read in good]
        columns: dict[str, Any] = {
            "image_path": [self.source.ids[row] for row in rows],
            "label": self.source.labels[rows],
        }
        write_table(_within(self.folder / "metadata" / f"metadata_{shard:06d}.parquet"), columns)

    def _check_same(self, shard: int, reads: list[ReadRow]) -> None:
        recorded = recorded_rows(rows_file(self.folder, shard))
        before = [recorded.sha256[place] for place in recorded.readable]
        for read, sha256 in zip(reads, before, strict=True):
            if isinstance(read.views, Unreadable) or read.contents.sha256 != sha256:
                name = self.source.ids[read.row]
                raise ClipguardError(
                    f"{self.source.location}: {name!r} changed since it was read: scan in a new run folder"
                )


def _reopened(opened: Opened, *, key: str, **others: Any) -> ReadingPass:
    source = opened.open()
    if source.key != key:
        raise ClipguardError(
            f"{source.location} is other data on {platform.node()} than where it was listed: "
            "all nodes have to see the same files, with the same dates"
        )
    return ReadingPass(source=source, **others)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows of a shard whose readable images are embedded together; `last` ends the shard."""

    shard: int
    reads: list[ReadRow]
    last: bool = False

    @property
    def readable(self) -> int:
        return sum(not isinstance(read.views, Unreadable) for read in self.reads)


_Embedded = tuple[_Piece, Float32[np.ndarray, "_ d"] | None]
"""A piece and the embeddings of its readable images; None where there are none of either."""


def _embedded(
    embed: Callable[[list[tuple[int, Views]]], Float32[np.ndarray, "_ d"] | None], piece: _Piece
) -> _Embedded:
    good = [(read.row, read.views) for read in piece.reads if not isinstance(read.views, Unreadable)]
    return piece, embed(good) if good else None


def _views(reads: list[ReadRow]) -> list[Views]:
    """Return what became of the readable images."""
    return [read.views for read in reads if not isinstance(read.views, Unreadable)]


def _embedded_if_new(guide: ClipGuide, baseline: BaselineEmbeddings, piece: _Piece) -> _Embedded:
    """Return a piece whose new images alone are embedded; the others' embeddings are the baseline's."""
    good = [read for read in piece.reads if not isinstance(read.views, Unreadable)]
    if not good:
        return _without_crops((piece, None))
    places = baseline.places([read.contents.sha256 for read in good])
    vectors = np.empty((len(good), baseline.width), np.float32)
    new = np.flatnonzero(places < 0)
    vectors[places >= 0] = baseline[places[places >= 0]]
    if len(new):
        vectors[new] = guide.clip.embed_crops([views.images[0] for views in _views([good[i] for i in new])])
    return _without_crops((piece, vectors))


def _without_crops(embedded: _Embedded) -> _Embedded:
    """Return a piece without what only the guide was given, which shares its memory with all other views."""
    piece, vectors = embedded
    reads = [
        read
        if isinstance(read.views, Unreadable)
        else replace(read, views=replace(read.views, images=tuple(map(np.copy, read.views.images[1:]))))
        for read in piece.reads
    ]
    return replace(piece, reads=reads), vectors


def pace(guide: ClipGuide, lanes: int) -> float:
    """Return how many images a second the guide embeds here, by a few grey ones."""
    # The model's own method: one that remembers embeddings would remember these, and be quick.
    clip, embed = guide.clip, partial(Clip.embed_crops, guide.clip)
    crops = [np.full((*clip.preprocessing.size, 3), 128, np.uint8)] * clip.chunk
    list(ordered_map(embed, [crops], 1, 1))
    began = time.monotonic()
    list(ordered_map(embed, [crops] * 2 * lanes, lanes, 2 * lanes))
    return 2 * lanes * clip.chunk / (time.monotonic() - began)


def _within(file: Path) -> Path:
    """Return the file, its folder made."""
    file.parent.mkdir(exist_ok=True)
    return file


def embedding_file(folder: Path, shard: int) -> Path:
    """Return the file of a shard's embeddings."""
    return folder / "img_emb" / f"img_emb_{shard:06d}.npy"


def image_file(folder: Path, shard: int) -> Path:
    """Return the file of a shard's images at one size."""
    return folder / f"images_{shard:06d}.npy"


def read_source(reading: ReadingPass, engine: Engine, progress: StepProgress) -> None:
    """Write all files of a pass; a shard that an earlier, killed attempt has left whole is not read again.

    Args:
        reading: what is read and where it goes.
        engine: who runs it over the shards.
        progress: called with (images done, n) after each shard.

    Raises:
        ClipguardError: more than a tenth of the images are unreadable, which is said as soon as it is known;
            or the source changed meanwhile.
    """
    n, done, bad = len(reading.source), 0, len(reading.source.refused)
    there = [shard for shard in range(reading.count) if reading.has(shard)]
    missing = sorted(set(range(reading.count)) - set(there))
    for shards in (there, engine.run(reading, reading.units(missing)) if missing else ()):
        for shard in shards:
            recorded = recorded_rows(rows_file(reading.folder, shard))
            done, bad = done + len(recorded.ids), bad + len(recorded.unreadable)
            if bad > MAX_UNREADABLE * (n + len(reading.source.refused)):
                raise _too_many(reading.source, bad, recorded.unreadable)
            progress(done, n)
    if reading.guide:
        record_source(reading.folder, reading.source, reading.count)


def _too_many(source: ImageSource, bad: int, unreadable: list[Unreadable]) -> ClipguardError:
    one = (*source.refused, *unreadable)[0]
    total = len(source) + len(source.refused)
    return ClipguardError(
        f"at least {bad} of {total} images of {source.location} are unreadable, more than "
        f"{MAX_UNREADABLE:.0%}, such as {one.id!r} ({one.reason}): repair or remove them"
    )
