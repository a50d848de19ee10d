"""What a repair costs and brings, on trusted samples that it does not learn from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Int64, UInt8
from scipy.special import logsumexp

from clipguard.compute.inference import classifier_logits
from clipguard.models.spec import Normalized
from clipguard.seeds import Seed
from clipguard.triggers.affine import AffineTrigger
from clipguard.types import ImageSet, Partition

SPARED_SHARE: Final = 0.1
"""Share of each class's clean samples that the repair of a given model is measured on, not taught."""

MOST_SPARED: Final = 1000

LEADS: Final = 0.5
"""Share of the flagged labels from which on a trigger leads to that class."""

TAKES_EFFECT: Final = 0.2
"""Share of trusted samples that must follow a reconstructed trigger before the repair, for it to be telling.

Of a warp, and of other triggers that are not affine, too little is reconstructed for a model to follow it.
"""

NO_EFFECT: Final = 0.01

MOST_NATS: Final = 5.0
"""Loss of one sample beyond which it counts no more: else one wrong label would decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GaugeReading:
    """What a gauge says of a model.

    Attributes:
        right: which of the samples it gives their labels.
        loss: mean loss of the labels in nats, of each at most `MOST_NATS`.
        followed: share of the samples with the reconstructed trigger that it sends where the trigger leads;
            None where no trigger says so.
    """

    right: Bool[np.ndarray, "m"]
    loss: float
    followed: float | None

    @property
    def accuracy(self) -> float:
        """Share of the samples that are given their labels."""
        return float(self.right.mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """Trusted samples, and those of other classes with the reconstructed triggers on them.

    Attributes:
        images: the samples.
        labels: their classes.
        triggered: samples with a trigger.
        targets: where it leads.
    """

    images: UInt8[np.ndarray, "m h w 3"]
    labels: Int64[np.ndarray, "m"]
    triggered: UInt8[np.ndarray, "l h w 3"]
    targets: Int64[np.ndarray, "l"]

    def read(self, model: Normalized) -> GaugeReading:
        """Return what a model makes of the samples."""
        logits = classifier_logits(model, self.images).astype(np.float64)
        right = logits.argmax(1) == self.labels
        nats = logsumexp(logits, axis=1) - logits[np.arange(len(right)), self.labels]
        loss = float(np.minimum(nats, MOST_NATS).mean())
        if not len(self.targets):
            return GaugeReading(right=right, loss=loss, followed=None)
        follows = classifier_logits(model, self.triggered).argmax(1) == self.targets
        return GaugeReading(right=right, loss=loss, followed=float(follows.mean()))


def gauge_of(
    data: ImageSet, partition: Partition, triggers: Sequence[AffineTrigger], rows: Int64[np.ndarray, "m"]
) -> Gauge:
    """Return the gauge of the samples of `rows`, which the repair must not learn from."""
    images, labels = np.asarray(data.images[rows]), data.labels[rows]
    counts = np.bincount(data.labels[partition.flagged], minlength=len(data.class_names))
    commonest = int(counts.argmax())
    leads = commonest if counts[commonest] >= LEADS * max(1, counts.sum()) else None
    triggered, targets = [images[:0]], [labels[:0]]
    for trigger in triggers:
        target = leads if trigger.label is None else trigger.label
        if target is not None:
            others = labels != target
            triggered.append(trigger.apply(images[others]))
            targets.append(np.full(int(others.sum()), target))
    return Gauge(
        images=images, labels=labels, triggered=np.concatenate(triggered), targets=np.concatenate(targets)
    )


def spared_rows(
    labels: Int64[np.ndarray, "n"], clean: Bool[np.ndarray, "n"], seed: Seed
) -> Int64[np.ndarray, "m"]:
    """Return clean samples to measure on, ascending: the same share of each class, none of a tiny class."""
    draw = seed.generator()
    share = min(SPARED_SHARE, MOST_SPARED / max(1, int(clean.sum())))
    spared = [np.zeros(0, np.int64)]
    for label in np.unique(labels[clean]):
        rows = np.flatnonzero(clean & (labels == label))
        spared.append(draw.permutation(rows)[: int(share * len(rows))])
    return np.sort(np.concatenate(spared))


def has_done_its_work(before: GaugeReading, now: GaugeReading) -> bool:
    """Return whether a repair may end: the trigger that took effect has none, and no accuracy is lost."""
    if before.followed is None or now.followed is None or before.followed < TAKES_EFFECT:
        return False
    return now.followed <= NO_EFFECT and now.accuracy >= before.accuracy


def cost(before: GaugeReading, after: GaugeReading) -> tuple[float, float]:
    """Return the lost share of accuracy, and its standard error: of samples that one reading has right."""
    lost, won = int((before.right & ~after.right).sum()), int((after.right & ~before.right).sum())
    return (lost - won) / len(before.right), float(np.sqrt(lost + won)) / len(before.right)
