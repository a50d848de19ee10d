"""Power: known triggers in a copy of the data, to measure what a scan of these data would have noticed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float32, Int64, Shaped

from clipguard.clip.model import Clip
from clipguard.clip.zero_shot import ClipGuide
from clipguard.compute.training import EpochHook
from clipguard.data import ImageSource
from clipguard.data.decode import prepared, read_images
from clipguard.detection.drawn_rows import MOST_ROWS
from clipguard.detection.sample_scores import SampleScores
from clipguard.errors import ClipguardError
from clipguard.pipeline.config import DefenseConfig
from clipguard.pipeline.sample_scoring import sample_scores
from clipguard.runs.summary import Family
from clipguard.seeds import Seed
from clipguard.triggers.canaries import canary_trigger
from clipguard.types import Images, ImageSet, Preprocessing, Rows, chunks

SHARE: Final = 0.03
"""Of the copy, at most: canaries must not crowd poison out of the entropy map's fixed share."""

SHARES: Final[dict[Family, float]] = {
    "patch": 0.005,
    "sinusoid": 0.008,
    "blend": 0.012,
    "clean-label": 0.018,
}
"""Of the copy, about as few as were identified on development rows of 10,000 samples."""

LEAST: Final[dict[Family, int]] = {"patch": 30, "sinusoid": 60, "blend": 90, "clean-label": 75}
"""Canaries below which a family is often missed, however small the data set (3,000 samples)."""

TOGETHER: Final = 512
"""Canaries whose large images are in memory at once: whole chunks of the guide."""

LARGEST_SIDE: Final = 512
"""Pixels at which a canary gets its trigger, at most: twice what most guides take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplacedRows:
    """Rows of other ones, some of which are replaced: the others are read when asked for, never copied.

    Attributes:
        rows: the original ones.
        at: numbers of the replaced rows, ascending.
        by: what replaces them.
    """

    rows: Rows
    at: Int64[np.ndarray, "m"]
    by: Shaped[np.ndarray, "m ..."]

    @property
    def shape(self) -> Any:
        """Number of rows, then the shape of each."""
        return self.rows.shape

    def __len__(self) -> int:
        """Return n."""
        return len(self.rows)

    def __getitem__(self, rows: Any, /) -> Any:
        """Return the rows of a slice or of an array of row numbers, as an array."""
        index = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows)
        place = np.searchsorted(self.at, index).clip(0, max(0, len(self.at) - 1))
        hit = self.at[place] == index if len(self.at) else np.zeros(len(index), dtype=bool)
        read: np.ndarray = np.array(self.rows[rows])
        read[hit] = self.by[place[hit]]
        return read


@dataclass(frozen=True, slots=True, kw_only=True)
class Canaries:
    """Samples of a copy that carry one known trigger.

    Attributes:
        family: of the trigger.
        label: the class that they are labelled with.
        rows: of the data set, ascending.
        seed: of the trigger.
    """

    family: Family
    label: int
    rows: Int64[np.ndarray, "m"]
    seed: Seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanned:
    """A data set as a scan sees it, and where its images can be had once more.

    Attributes:
        data: images as the small nets take them.
        embeddings: the guide's embeddings of them [n, d].
        guide: who made these; it is asked about canaries only.
        config: of the scan.
        originals: returns the images of some ascending rows as they came, all of one size; see `originals`.
        view: how the small nets see an image.
        untouched: samples that canaries may be made of: those that the scan does not flag.
        unsuspected: classes that canaries may be labelled with: those that are not suspected target classes.
    """

    data: ImageSet
    embeddings: Rows
    guide: ClipGuide
    config: DefenseConfig
    originals: Callable[[Int64[np.ndarray, "m"]], Images]
    view: Preprocessing
    untouched: Bool[np.ndarray, "n"]
    unsuspected: Bool[np.ndarray, "k"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryOutcome:
    """What the scan of a copy says of one class with canaries.

    Attributes:
        copy: number of the copy, from 0.
        family: of the trigger.
        label: the class.
        samples: canaries of it.
        suspected: whether the class is suspected.
    """

    copy: int
    family: Family
    label: int
    samples: int
    suspected: bool


def originals(source: ImageSource, size: tuple[int, int]) -> Callable[[Int64[np.ndarray, "m"]], Images]:
    """Return what reads images of a source anew, at its commonest size or at most `LARGEST_SIDE` a side.

    A trigger is put on the image as its owner would have it, before guide and small nets shrink it each in
    their way. On an enlarged thumbnail, the guide would notice the blur and not the trigger.

    Args:
        source: readable images, in the order of the data set.
        size: the commonest height and width.
    """
    shrink = min(1.0, LARGEST_SIDE / max(size))
    whole = Preprocessing(size=(max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))))

    def read(rows: Int64[np.ndarray, "m"]) -> Images:
        images, unreadable = read_images(source.take(rows), whole)
        if unreadable:
            raise ClipguardError(
                f"{unreadable[0].id} can no longer be read: the data changed while they were scanned; scan "
                "them again"
            )
        return images.pixels

    return read


def canary_sets(n: int) -> tuple[dict[Family, int], ...]:
    """Return how many canaries of which families the copies of n samples get, one copy after the other.

    Each set is at most `SHARE` of the copy. A family goes into the first set that it fits into, in the
    order of `SHARES`. One whose `LEAST` does not fit at all is in none: so small a data set cannot show it.
    """
    size = min(n, MOST_ROWS)
    most, sets = int(SHARE * size), list[dict[Family, int]]()
    for family, share in SHARES.items():
        count = max(LEAST[family], round(share * size))
        if count > most:
            continue
        place = next((some for some in sets if sum(some.values()) + count <= most), None)
        if place is None:
            place = {}
            sets.append(place)
        place[family] = count
    return tuple(sets)


def chosen_canaries(
    labels: Int64[np.ndarray, "n"],
    counts: Mapping[Family, int],
    untouched: Bool[np.ndarray, "n"],
    unsuspected: Bool[np.ndarray, "k"],
    seed: Seed,
) -> tuple[Canaries, ...]:
    """Return canaries of each family in a class of its own, as far as there are classes large enough.

    The class of a family has at least as many untouched samples of its own as canaries, so that these are
    half of it at most. Canaries with a wrong label are drawn from the other classes.

    Args:
        labels: as given.
        counts: of each family.
        untouched: samples that may become canaries.
        unsuspected: classes that may get canaries.
        seed: of classes, samples and triggers.
    """
    draw = seed.generator()
    free = untouched.copy()
    sizes = np.bincount(labels[untouched], minlength=len(unsuspected))
    classes = [int(label) for label in draw.permutation(len(unsuspected)) if unsuspected[label]]
    chosen = []
    for family, count in sorted(counts.items(), key=lambda item: -item[1]):
        least = 2 * count if family == "clean-label" else count
        label = next((label for label in classes if sizes[label] >= least), None)
        if label is None or not count:
            continue
        classes.remove(label)
        own = labels == label
        rows = np.flatnonzero(free & (own if family == "clean-label" else ~own))
        if len(rows) < count:
            continue
        rows = np.sort(draw.choice(rows, count, replace=False))
        free[rows] = False
        chosen.append(Canaries(family=family, label=label, rows=rows, seed=seed.child(family)))
    return tuple(chosen)


def canary_copy(scanned: Scanned, canaries: tuple[Canaries, ...]) -> tuple[ImageSet, Rows]:
    """Return the data set with canaries in it, and the guide's embeddings of it; nothing else is copied.

    Args:
        scanned: the data set.
        canaries: what is put into it; at least one.
    """
    labels, clip = scanned.data.labels.copy(), scanned.guide.clip
    images, vectors = [], []
    for some in canaries:
        labels[some.rows] = some.label
        for part in chunks(len(some.rows), TOGETHER):
            full = triggered(some, scanned.originals(some.rows[part]))
            images.append(np.stack([prepared(image, scanned.view) for image in full]))
            vectors.append(embedded(clip, full))
    rows = np.concatenate([some.rows for some in canaries])
    order = np.argsort(rows)
    at = rows[order]
    pixels = ReplacedRows(rows=scanned.data.images, at=at, by=np.concatenate(images)[order])
    embeddings = ReplacedRows(rows=scanned.embeddings, at=at, by=np.concatenate(vectors)[order])
    return replace(scanned.data, images=pixels, labels=labels, fingerprint=""), embeddings


def triggered(canaries: Canaries, images: Images) -> Images:
    """Return the images of canaries with their trigger."""
    height, width = images.shape[1:3]
    trigger = canary_trigger(canaries.family, height, width, canaries.seed)
    return np.concatenate([trigger.apply(images[part]) for part in chunks(len(images), 32)])


def embedded(clip: Clip, images: Images) -> Float32[np.ndarray, "m d"]:
    """Return the guide's embeddings, each computed in a full chunk.

    The last bits of an embedding depend on how many images share its chunk. Copies of the last image fill
    the last chunk, so that a canary's embedding differs from that of its image by the trigger alone.
    """
    filled = np.concatenate([images, np.repeat(images[-1:], -len(images) % clip.chunk, axis=0)])
    return np.concatenate([clip.embed_images(filled[part]) for part in chunks(len(filled))])[: len(images)]


def power(  # what is put in, who judges it, and how often
    scanned: Scanned,
    sets: Sequence[Mapping[Family, int]],
    suspected: Callable[[SampleScores], Bool[np.ndarray, "k"]],
    copies: int,
    seed: Seed,
    on_epoch: EpochHook | None = None,
) -> Iterator[CanaryOutcome]:
    """Yield what the scan of each copy says of the classes with canaries; a copy takes about one scan.

    Args:
        scanned: the data set.
        sets: canaries of each family in the first copy, the second and so on, over and over: `canary_sets`.
        suspected: says of each class whether these scores make it a suspected one.
        copies: each with other classes, samples and triggers.
        seed: of all of these; each copy is scanned with a seed of its own.
        on_epoch: called with the number of finished epochs of any net.
    """
    for number in range(copies if sets else 0):
        counts, stream = sets[number % len(sets)], seed.child("copy", number)
        canaries = chosen_canaries(
            scanned.data.labels, counts, scanned.untouched, scanned.unsuspected, stream
        )
        if canaries:
            named = suspected(copy_scores(scanned, canaries, stream.child("scan"), on_epoch))
            for some in canaries:
                yield CanaryOutcome(
                    copy=number,
                    family=some.family,
                    label=some.label,
                    samples=len(some.rows),
                    suspected=bool(named[some.label]),
                )


def copy_scores(
    scanned: Scanned, canaries: tuple[Canaries, ...], seed: Seed, on_epoch: EpochHook | None = None
) -> SampleScores:
    """Return the scores of a scan of a copy."""
    data, embeddings = canary_copy(scanned, canaries)
    guide = scanned.guide.logits(embeddings, data.class_names)
    return sample_scores(data, guide, embeddings, replace(scanned.config, seed=seed.value), on_epoch)
