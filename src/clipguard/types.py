"""Frozen values that the stages pass along (numpy only). n samples, k classes, d embedding width."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Final, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, Shaped, UInt8

Images = UInt8[np.ndarray, "n h w 3"]

Progress = Callable[[str, int, int], None]
"""Called with (step, done, total) as work goes on; with total 0, the step is a remark."""

StepProgress = Callable[[int, int], None]
"""The same of one step: called with (done, total)."""


@runtime_checkable
class Rows(Protocol):
    """n rows of equal shape: an array, or what lies in files and is read as far as it is asked for.

    It is asked by slices without a step and by int64 arrays of row numbers, in any order; both give new or
    read-only arrays. A boolean mask over all rows would read everything, so that only arrays take one.
    """

    @property
    def shape(self) -> Any:
        """Number of rows, then the shape of each."""

    def __len__(self) -> int:
        """Return n."""

    def __getitem__(self, rows: Any, /) -> Any:
        """Return the rows of a slice or of an array of row numbers, as an array."""


CHUNK: Final = 1024
"""Rows that are looked at together where all are."""


def chunks(n: int, size: int = CHUNK) -> Iterator[slice]:
    """Return the slices that cut n rows into pieces of `size`, the last perhaps smaller."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


LARGEST_THUMBNAIL: Final = 64
"""Pixels a side at which the small nets see larger images, unless a size is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How an image of any size becomes what a net takes; names and meaning are timm's.

    Attributes:
        size: height and width, in pixels.
        resize: `squash` ignores the aspect ratio; `shortest` fits the shorter side, `longest` the longer one.
        crop: side of the centre crop over that of the resized image (timm: crop_pct).
        interpolation: of the resize, always antialiased.
        fill: grey level around an image that `longest` leaves smaller than `size`.
        mean: per channel, subtracted from images scaled to [0, 1].
        std: per channel, divided by after that.
    """

    size: tuple[int, int]
    resize: Literal["squash", "shortest", "longest"] = "squash"
    crop: float = 1.0
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    fill: int = 0
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)

    @staticmethod
    def thumbnail(size: tuple[int, int]) -> "Preprocessing":
        """Return how the small nets see images of a size, by default: at most 64 a side, at least 8."""
        shrink = min(1.0, LARGEST_THUMBNAIL / max(size))
        height, width = (max(8, round(side * shrink)) for side in size)
        return Preprocessing(size=(height, width))

    @property
    def geometry(self) -> "Preprocessing":
        """The same without normalisation: what decides the pixels."""
        return replace(self, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """A labelled image set: all images of one size.

    Attributes:
        images: uint8 [n, h, w, 3], RGB values 0..255: an array, or rows in files.
        labels: index into `class_names`, as given by the (untrusted) source.
        ids: one name a sample, unique, stable over runs.
        class_names: human-readable names; what the guide reads.
        fingerprint: hash of everything above as it came from the source.
        groups: number of each sample's group, which cross-validation never tears apart; None without any.
    """

    images: Rows
    labels: Int64[np.ndarray, "n"]
    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    fingerprint: str
    groups: Int64[np.ndarray, "n"] | None = None

    def __len__(self) -> int:
        """Return n."""
        return len(self.labels)

    @property
    def pixels(self) -> Images:
        """All images as one array in memory: for sets that are known to be small."""
        every: np.ndarray = self.images[:]
        return every

    def take(self, rows: Int64[np.ndarray, "m"]) -> "ImageSet":
        """Return the sub-set at `rows`, in memory, with a fingerprint of its own."""
        taken = image_set(
            self.images[rows], self.labels[rows], self.class_names, tuple(self.ids[i] for i in rows)
        )
        return taken if self.groups is None else replace(taken, groups=self.groups[rows])

    def changed(self, images: Images, labels: Int64[np.ndarray, "n"]) -> "ImageSet":
        """Return the set with other contents under the same names, ids and groups."""
        return replace(image_set(images, labels, self.class_names, self.ids), groups=self.groups)


def image_set(
    images: UInt8[np.ndarray, "n h w 3"],
    labels: Int64[np.ndarray, "n"],
    class_names: tuple[str, ...],
    ids: tuple[str, ...] | None = None,
) -> ImageSet:
    """Return an `ImageSet` whose fingerprint is the hash of its contents."""
    names = tuple(str(i) for i in range(len(labels))) if ids is None else ids
    digest = hashlib.sha256()
    # JSON, so that no choice of names looks like another; it also takes file names that are no valid UTF-8.
    digest.update(json.dumps([images.shape, class_names, names]).encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(labels.tobytes())
    return ImageSet(
        images=images, labels=labels, ids=names, class_names=class_names, fingerprint=digest.hexdigest()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsAt:
    """Rows of other ones, chosen by number: in any order, left out or repeated, read when asked for."""

    rows: Rows
    at: Int64[np.ndarray, "n"]

    @property
    def shape(self) -> Any:
        """Number of rows, then the shape of each."""
        return (len(self), *self.rows.shape[1:])

    def __len__(self) -> int:
        """Return n."""
        return len(self.at)

    def __getitem__(self, rows: Any, /) -> Any:
        """Return the rows of a slice or of an array of row numbers, as an array."""
        return self.rows[self.at[rows]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Logits of one scorer over a data set, perhaps computed when asked for: all might not fit in memory.

    Attributes:
        logits: float32 [n, k], before any scale; softmax of `scale * logits` is the scorer's posterior.
        scale: CLIP's logit scale, 1 for an ordinary classifier.
        source: who scored, for tables and the report.
    """

    logits: Rows
    scale: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyMap:
    """Two negative log-likelihoods of the given label, in nats, and their ranks in (0, 1], ties averaged."""

    guide_nll: Float64[np.ndarray, "n"]
    early_nll: Float64[np.ndarray, "n"]
    guide_rank: Float64[np.ndarray, "n"]
    early_rank: Float64[np.ndarray, "n"]


class State(IntEnum):
    """What becomes of a sample; `STATES` says how each state is named."""

    CLEAN = 0
    """Learnt from."""
    UNCERTAIN = 1
    """Not learnt from; unlearning may re-admit it."""
    EXCLUDED = 2
    """Never learnt from, and never re-admitted."""
    TRIGGER = 3
    """Flagged for a trigger: unlearnt."""
    LABEL = 4
    """Flagged for its label alone: unlearnt, and learnt as what its soft label says."""
    HELD_OUT = 5
    """Left out of a training, so that accuracy can be measured on it."""
    KEPT = 6
    """Learnt from, since a reviewer keeps what the scan flags or sets aside."""
    DROPPED = 7
    """Unlearnt, since a reviewer drops what the scan does not flag."""


class StateName(NamedTuple):
    """How a state is named: in the columns `status` and `reason`, and in `RunSummary.partition`."""

    status: str
    reason: str
    counted_as: str


STATES: Final = {
    State.CLEAN: StateName("trusted", "", "clean"),
    State.UNCERTAIN: StateName("set aside", "uncertain", "uncertain"),
    State.EXCLUDED: StateName("set aside", "excluded", "excluded"),
    State.TRIGGER: StateName("flagged", "trigger", "flagged_for_a_trigger"),
    State.LABEL: StateName("flagged", "label", "flagged_for_its_label"),
    State.HELD_OUT: StateName("set aside", "held out", "held_out"),
    State.KEPT: StateName("trusted", "reviewed", "kept_by_review"),
    State.DROPPED: StateName("flagged", "reviewed", "dropped_by_review"),
}
"""The one table from which every column and count of a partition derives."""

NO_TRIGGER: Final = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """What becomes of each sample: learnt from, set aside, or unlearnt.

    Attributes:
        state: one of `State` a sample.
        suspicion: in [0, 1], higher is more suspicious; the ranked list is sorted by it.
        trigger: number of the reconstructed trigger that a sample is flagged for, `NO_TRIGGER` for none.
        quarantined: classes of which no sample is re-admitted.
        clean_share: estimated share of correct labels among the unflagged samples of each class.
        soft_rows: samples with a soft pseudo-label, ascending.
        soft_labels: their class probabilities if the given label is wrong.
    """

    state: UInt8[np.ndarray, "n"]
    suspicion: Float64[np.ndarray, "n"]
    trigger: Int64[np.ndarray, "n"]
    quarantined: tuple[int, ...]
    clean_share: Float64[np.ndarray, "k"]
    soft_rows: Int64[np.ndarray, "m"]
    soft_labels: Float32[np.ndarray, "m k"]

    def __len__(self) -> int:
        """Return n."""
        return len(self.state)

    def has(self, *states: State) -> Bool[np.ndarray, "n"]:
        """Return which samples are in one of the states."""
        return np.isin(self.state, states)

    @property
    def fingerprint(self) -> str:
        """Hash of everything in it, for the keys of what is computed from it."""
        quarantined = np.array(self.quarantined, dtype=np.int64)
        soft = (self.soft_rows, self.soft_labels)
        return array_digest(self.state, self.suspicion, self.trigger, quarantined, self.clean_share, *soft)

    @property
    def clean(self) -> Bool[np.ndarray, "n"]:
        """Samples that are learnt from."""
        return self.has(State.CLEAN, State.KEPT)

    @property
    def flagged(self) -> Bool[np.ndarray, "n"]:
        """Samples that are unlearnt."""
        return self.has(State.TRIGGER, State.LABEL, State.DROPPED)

    @property
    def counts(self) -> dict[str, int]:
        """Number of samples of each state, by the state's name."""
        sizes = np.bincount(self.state, minlength=len(STATES))
        return {name.counted_as: int(sizes[state]) for state, name in STATES.items()}

    def moved(self, rows: Bool[np.ndarray, "n"] | Int64[np.ndarray, "m"], state: State) -> "Partition":
        """Return the partition with the samples of `rows` in another state."""
        changed = self.state.copy()
        changed[rows] = state
        return replace(self, state=changed)

    def extend(self, rows: Int64[np.ndarray, "m"]) -> "Partition":
        """Return the partition longer by clean copies of the samples of `rows`."""
        return replace(
            self,
            state=np.concatenate([self.state, np.full(len(rows), State.CLEAN, np.uint8)]),
            suspicion=np.concatenate([self.suspicion, self.suspicion[rows]]),
            trigger=np.concatenate([self.trigger, np.full(len(rows), NO_TRIGGER)]),
        )

    def take(self, rows: Int64[np.ndarray, "m"]) -> "Partition":
        """Return the partition of the samples of `rows`, which ascend."""
        kept = np.isin(self.soft_rows, rows)
        return replace(
            self,
            state=self.state[rows],
            suspicion=self.suspicion[rows],
            trigger=self.trigger[rows],
            soft_rows=np.searchsorted(rows, self.soft_rows[kept]),
            soft_labels=self.soft_labels[kept],
        )


def array_digest(*arrays: Shaped[np.ndarray, "..."]) -> str:
    """Return the sha256 of arrays, their types and shapes included."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(json.dumps([str(array.dtype), array.shape]).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def partition_of(
    state: UInt8[np.ndarray, "n"], suspicion: Float64[np.ndarray, "n"], num_classes: int
) -> Partition:
    """Return a partition that knows nothing but states and suspicion."""
    return Partition(
        state=state,
        suspicion=suspicion,
        trigger=np.full(len(state), NO_TRIGGER, np.int64),
        quarantined=(),
        clean_share=np.ones(num_classes),
        soft_rows=np.zeros(0, np.int64),
        soft_labels=np.zeros((0, num_classes), np.float32),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """One entry an epoch, by column name; `seconds` is wall-clock time."""

    columns: dict[str, tuple[float, ...]]
    seconds: float
