"""Frozen values that the stages pass along (numpy only). n samples, k classes, d embedding width."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

Images = UInt8[np.ndarray, "n h w 3"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """A labelled image set in memory: all images of one size.

    Attributes:
        images: RGB values 0..255; may be a memory map.
        labels: index into `class_names`, as given by the (untrusted) source.
        ids: one name a sample, unique, stable over runs.
        class_names: human-readable names; what the guide reads.
        fingerprint: hash of everything above as it came from the source.
    """

    images: UInt8[np.ndarray, "n h w 3"]
    labels: Int64[np.ndarray, "n"]
    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        """Return n."""
        return len(self.labels)

    def take(self, rows: Int64[np.ndarray, "m"]) -> "ImageSet":
        """Return the sub-set at `rows`, with a fingerprint of its own."""
        return image_set(
            self.images[rows], self.labels[rows], self.class_names, tuple(self.ids[i] for i in rows)
        )


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
class Scores:
    """Logits of one scorer over a data set.

    Attributes:
        logits: before any scale; softmax of `scale * logits` is the scorer's posterior.
        scale: CLIP's logit scale, 1 for an ordinary classifier.
        source: who scored, for tables and the report.
    """

    logits: Float32[np.ndarray, "n k"]
    scale: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyMap:
    """Two negative log-likelihoods of the given label, in nats, and their ranks in (0, 1], ties averaged."""

    guide_nll: Float64[np.ndarray, "n"]
    suspect_nll: Float64[np.ndarray, "n"]
    guide_rank: Float64[np.ndarray, "n"]
    suspect_rank: Float64[np.ndarray, "n"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Which samples to learn from and which to unlearn.

    Attributes:
        clean: samples whose label is trusted.
        triggered: samples whose label is to be unlearnt; disjoint from `clean`.
        suspicion: in [0, 1], higher is more suspicious; what the ranked list is sorted by.
        starved: classes with too few clean samples to trust what is learnt of them.
        doubted: samples in neither set that never join `clean`; None for no such sample.
        closed: classes of which no sample joins `clean` while a model is cured, doubted or not.
        honest: share of each class outside `triggered` that is thought to be labelled honestly; None for all.
        shown: class probabilities of what samples of closed classes show if their label is wrong; rows of
            zeros for all others, also for what is `triggered` for its image; None if no label is flagged.
    """

    clean: Bool[np.ndarray, "n"]
    triggered: Bool[np.ndarray, "n"]
    suspicion: Float64[np.ndarray, "n"]
    starved: tuple[str, ...] = ()
    doubted: Bool[np.ndarray, "n"] | None = None
    closed: tuple[int, ...] = ()
    honest: Float64[np.ndarray, "k"] | None = None
    shown: Float32[np.ndarray, "n k"] | None = None

    @property
    def admissible(self) -> Bool[np.ndarray, "n"]:
        """Samples that are in `clean` or may join it."""
        return np.asarray(~self.triggered if self.doubted is None else ~self.triggered & ~self.doubted)


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineTrigger:
    """A trigger of the form scale x + shift, value by value, in grey levels 0..255.

    `label` is the class that it leads to where several triggers were told apart by that, else None.
    """

    scale: Float32[np.ndarray, "h w 3"]
    shift: Float32[np.ndarray, "h w 3"]
    label: int | None = None

    def put(self, images: Images) -> Images:
        """Return images with the trigger, rounded."""
        moved: np.ndarray = np.rint(self.scale * images.astype(np.float32) + self.shift)
        return moved.clip(0, 255).astype(np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """One entry an epoch, by column name; `seconds` is wall-clock time."""

    columns: dict[str, tuple[float, ...]]
    seconds: float
